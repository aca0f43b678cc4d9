"""Time that torch.compile takes, which is not training time."""

import time
from functools import cache

from torch._dynamo.callback import CallbackArgs, CallbackTrigger, callback_handler


class CompilationClock:
    """Counts the compilations of this process and their time, as reported by dynamo's callbacks.

    A network is compiled within its first step at each patch size (its backward pass at the latest
    in that step's backward), so this time would otherwise count as training. A result from
    inductor's cache on disk counts too, with the time to load it. Not counted: the choice of
    convolution kernels by cuDNN, and the choice of a Triton kernel's configuration at its first
    call, for which torch 2.14 calls no callback.

    Attributes:
        count: frames that dynamo compiled, at least one per size.
        seconds: total time of their compilation.
    """

    def __init__(self) -> None:
        """Count from now on, until the process ends."""
        self.count, self.seconds = 0, 0.0
        self._began = 0.0
        callback_handler.register_start_callback(self._start)
        callback_handler.register_end_callback(self._end)

    def _start(self, compilation: CallbackArgs) -> None:
        self._began = time.monotonic()

    def _end(self, compilation: CallbackArgs) -> None:
        self.seconds += time.monotonic() - self._began
        self.count += compilation.callback_trigger == CallbackTrigger.DYNAMO


@cache
def compilation_clock() -> CompilationClock:
    """Return the clock of this process."""
    return CompilationClock()
