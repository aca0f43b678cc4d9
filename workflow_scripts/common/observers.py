"""Observers of the methods of nnU-Net's trainers."""

from collections.abc import Callable
from functools import wraps
from typing import Any


def observe(
    target: Any,
    method: str,
    *,
    before: Callable[..., object] | None = None,
    after: Callable[[Any], object] | None = None,
) -> None:
    """Call functions before and after a method of one object, which works as before.

    Of several observers of a method, the last one is called first before it, and last after it.

    Args:
        target: the object, such as a trainer.
        method: name of its method.
        before: called with the arguments; an exception that it raises replaces the call.
        after: called with the result, unless the method raises an exception.
    """
    observed = getattr(target, method)

    @wraps(observed)
    def call(*args: Any, **kwargs: Any) -> Any:
        if before:
            before(*args, **kwargs)
        result = observed(*args, **kwargs)
        if after:
            after(result)
        return result

    setattr(target, method, call)
