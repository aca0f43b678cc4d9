"""Compute rate of a network, compared with that of matrix products."""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from workflow_scripts.common.hardware import Hardware
from workflow_scripts.records.flop_counter import FlopTable

TYPES = {"amp": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
EDGE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the square matrices."""
SECONDS, FEWEST = 2.0, 3

KINDS = {
    "optimiser and clipping": ("_foreach", "linalg_vector_norm", "optimizer", "aten::mul_"),
    "convolutions": ("conv", "mkldnn"),
    "norms": ("batch_norm", "instance_norm"),
    "copies": ("copy_", "cat", "fill_", "zero_", "clone", "contiguous"),
    "activations": ("leaky_relu",),
}
"""Kinds of torch operators, by parts of their names; the first match counts."""


def measure_rates(trainer: Any, hardware: Hardware, flops: FlopTable) -> dict[str, Any]:
    """Measure with a finished trainer, whose network is changed.

    Returns:
        `matmul`: FLOP/s of a product of square matrices in the training's precision; `network`:
        FLOP/s of forward and backward pass at the planned batch, without loss and loading;
        `profile`: share of each kind of operator in the processor time of a whole step (empty on
        a GPU).
    """
    edge = EDGE[hardware.device]
    one, other = torch.randn(2, edge, edge, device=hardware.device, dtype=TYPES[hardware.precision])
    planned = trainer.configuration_manager
    size = planned.batch_size, trainer.num_input_channels, *planned.patch_size
    images = torch.randn(size, device=hardware.device)
    network, optimizer = trainer.network.train(), trainer.optimizer

    def passes() -> None:
        with torch.autocast(hardware.device, enabled=hardware.device == "cuda"):
            outputs = network(images)
        sum(output.float().square().mean() for output in outputs).backward()

    def whole_step() -> None:
        optimizer.zero_grad(set_to_none=True)
        passes()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()

    gflop = flops.training_step(planned.batch_size, tuple(planned.patch_size))
    return {
        "matmul": 2 * edge**3 / _seconds(lambda: one @ other, hardware.device),
        "network": gflop / _seconds(passes, hardware.device),
        "profile": profile(whole_step) if hardware.device == "cpu" else {},
    }


def profile(step: Callable[[], object]) -> dict[str, float]:
    """Return the shares of `KINDS`, and of all `other` operators, in a step's time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step()
    shares: dict[str, float] = defaultdict(float)
    for operator in profiler.key_averages():
        shares[kind_of(operator.key)] += operator.self_cpu_time_total
    whole = sum(shares.values())
    return {kind: shares[kind] / whole for kind in [*KINDS, "other"]}


def kind_of(operator: str) -> str:
    """Return the kind of a torch operator, by its name."""
    name = operator.lower()
    for kind, parts in KINDS.items():
        if any(part in name for part in parts):
            return kind
    return "other"


def _seconds(compute: Callable[[], object], device: str) -> float:
    """Return the mean seconds of a computation, after one warm-up."""

    def synchronise() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    compute()
    synchronise()
    began, times = time.monotonic(), 0
    while times < FEWEST or time.monotonic() - began < SECONDS:
        compute()
        synchronise()
        times += 1
    return (time.monotonic() - began) / times
