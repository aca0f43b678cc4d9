"""Measure a short training of one trainer in its own process: `timed_training SPEC`.

SPEC is a JSON file. The measurements are printed as JSON on the last line of standard output.
"""

import json
import resource
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch._dynamo import OptimizedModule

from workflow_scripts.benchmark.compute_rate import measure_rates
from workflow_scripts.common import hardware, nnunet_setup
from workflow_scripts.common.observers import observe
from workflow_scripts.common.trainer_protocol import as_curriculum_trainer
from workflow_scripts.records.compilation import compilation_clock
from workflow_scripts.records.energy_meter import EnergyMeter
from workflow_scripts.records.flop_counter import FlopTable
from workflow_scripts.records.ledger import EpochWork, Ledger
from workflow_scripts.records.recorder import Recorder
from workflow_scripts.records.updates import UpdateCounter
from workflow_scripts.study.settings import RunSettings
from workflow_scripts.study.specification import RunSpec
from workflow_scripts.training.trainer_factory import make_trainer


@dataclass
class Iteration:
    """A training iteration.

    Attributes:
        epoch: number, from 0.
        patch_size: voxels per axis.
        seconds: from the end of the previous one (or of the epoch's preparation), with loading but
            without compilation.
        gflop: operations.
        wait: seconds until its batch was there.
        device: where the batch was when the step began.
        loss: its loss.
        updated: whether it changed the weights.
        compilations: frames that were compiled in it.
    """

    epoch: int
    patch_size: tuple[int, ...]
    seconds: float
    gflop: float
    wait: float
    device: str
    loss: float
    updated: bool
    compilations: int


class StepTimer:
    """Observes the training steps of a trainer and the workers that load its batches.

    Attributes:
        iterations: all so far.
        outputs: types of the network's output.
        reductions: seconds of each reduction of a batch's frequencies.
        worker_mb, load_seconds: memory and processor time of the workers at the end.
    """

    def __init__(self, trainer: Any, flops: FlopTable) -> None:
        """Observe a trainer that has not started yet."""
        self.iterations: list[Iteration] = []
        self.outputs: set[str] = set()
        self.reductions: list[float] = []
        self.worker_mb = self.load_seconds = 0.0
        self._trainer, self._flops = trainer, flops
        self._curriculum = as_curriculum_trainer(trainer)
        self._compiler, self._updates = compilation_clock(), UpdateCounter(trainer)
        self._clock = self._reduction_began = 0.0
        trainer.loss.register_forward_pre_hook(self._note_output)
        observe(trainer, "on_train_start", after=self._watch_reductions)
        observe(trainer, "on_train_epoch_start", after=self._start_clock)
        observe(trainer, "train_step", before=self._before_step, after=self._after_step)
        observe(trainer, "on_train_end", before=self._measure_workers)

    def _start_clock(self, _: object = None) -> None:
        self._clock = time.monotonic()

    def _before_step(self, batch: dict[str, Any]) -> None:
        self._wait = time.monotonic() - self._clock
        self._device = batch["data"].device.type
        self._size = tuple(batch["data"].shape)
        self._scale = self._curriculum.scale_of_step("train") if self._curriculum else None
        self._updates.follow()
        self._before = self._updates.count, self._compiler.count, self._compiler.seconds

    def _after_step(self, output: dict[str, Any]) -> None:
        seconds = time.monotonic() - self._clock
        updates, compilations, compile_seconds = self._before
        batch_size, _, *patch_size = self._size
        self.iterations.append(
            Iteration(
                epoch=self._trainer.current_epoch,
                patch_size=tuple(patch_size),
                seconds=seconds - (self._compiler.seconds - compile_seconds),
                gflop=self._flops.training_step(batch_size, tuple(patch_size), self._scale) / 1e9,
                wait=self._wait,
                device=self._device,
                loss=float(output["loss"]),
                updated=self._updates.count > updates,
                compilations=self._compiler.count - compilations,
            )
        )
        self._start_clock()

    def _note_output(self, _: object, tensors: Any) -> None:
        self.outputs.add(str(tensors[0][0].dtype).removeprefix("torch."))

    def _watch_reductions(self, _: object) -> None:
        loader = self._trainer.dataloader_train
        if hasattr(loader, "_reduce"):
            observe(loader, "_reduce", before=self._before_reduction, after=self._after_reduction)

    def _before_reduction(self, *_: object) -> None:
        self._reduction_began = time.monotonic()

    def _after_reduction(self, _: object) -> None:
        self.reductions.append(time.monotonic() - self._reduction_began)

    def _measure_workers(self) -> None:
        workers = psutil.Process().children(recursive=True)
        self.worker_mb = sum(worker.memory_info().rss for worker in workers) / 2**20
        self.load_seconds = sum(sum(worker.cpu_times()[:2]) for worker in workers)


def compute_in_full_precision(trainer: Any, network: Any) -> None:
    """Let a trainer compute its network in fp32, even on a GPU, where nnU-Net would not."""
    trainer.grad_scaler = None
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    forward, device = network.forward, trainer.device.type

    def in_fp32(x: torch.Tensor) -> Any:
        with torch.autocast(device, enabled=False):
            return forward(x.float())

    network.forward = in_fp32


def compile_with(backend: str) -> None:
    """Let nnU-Net's trainers compile on every device, with a backend of torch.compile."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    stock: Any = nnUNetTrainer
    library: Any = torch
    stock._do_i_compile = lambda self: True
    library.compile = partial(torch.compile, backend=backend)


def measure(
    run: RunSpec,
    settings: RunSettings,
    plans_file: Path,
    folder: Path,
    *,
    rates: bool = False,
    full_precision: bool = False,
    backend: str | None = None,
) -> dict[str, Any]:
    """Train as `train_fold` does, with its meter and ledger, and return the measurements.

    Args:
        run, settings, plans_file: as in `training.fold.Fold`.
        folder: an empty folder for nnU-Net's results.
        rates: also measure the compute rates of the network and of matrix products.
        full_precision: compute in fp32, even on a GPU.
        backend: compile with this backend of torch.compile, also on a CPU; None is nnU-Net's
            choice.

    Returns:
        `iterations`: for each training iteration [epoch, patch size, seconds, gflop]; seconds count
        from the end of the previous one (or of the epoch's preparation) to its own end, including
        loading but not compilation; `epochs`: for each [seconds, train_seconds, val_seconds],
        without compilation; `peak_mb`: peak memory of the GPU's tensors or, on a CPU, of this
        process and its workers; `reserved_mb`: peak memory that torch reserved on the GPU, with
        unused parts between tensors; `precision`; `memory_format` of the weights; `output`: type
        of the network's output; `scaler`: whether there is a gradient scaler; `updated`: for each
        training iteration, whether it changed the weights (a scaler skips some); `devices`: where
        each batch was when its step began; `compiled`: whether the network is; `compilations`: for
        each iteration, the frames that were compiled in it; `compile_seconds`; `reduced` and
        `reduce_seconds`: number of batches whose frequencies a low-frequency arm reduced, and the
        seconds (on a CPU) that this took; `losses` and `waits`: loss of each training iteration,
        and the seconds that it waited for its batch; `load_seconds`: processor time of the workers;
        `whole_seconds`: from the start of the process to the final checkpoint; `rates`: result of
        `compute_rate.measure_rates`, if wanted.
    """
    found = hardware.prepare(settings.training, settings.training.threads)
    nnunet_setup.configure(found.processes, found.augmentation_workers, folder)

    if backend is not None:
        compile_with(backend)
    compiler, began = compilation_clock(), time.monotonic()
    trainer = make_trainer(run, settings.training, plans_file, found.device, resume=False)
    network = getattr(trainer.network, "_orig_mod", trainer.network)
    flops = FlopTable(network, trainer.num_input_channels)
    memory_format = hardware.prepare_network(network, found)
    if full_precision:
        compute_in_full_precision(trainer, network)
    ledger, meter = Ledger(folder / "ledger.jsonl"), EnergyMeter(settings.energy, found.gpu)
    Recorder(ledger, meter, flops, 1, began).attach(trainer)
    timer = StepTimer(trainer, flops)
    trainer.run_training()
    whole_seconds = time.time() - psutil.Process().create_time()
    on_gpu = found.device == "cuda"
    peak_mb = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else _own_mb() + timer.worker_mb
    reserved_mb = torch.cuda.max_memory_reserved() / 2**20 if on_gpu else None
    measured = {"rates": measure_rates(trainer, found, flops)} if rates else {}
    return measured | {
        "losses": [each.loss for each in timer.iterations],
        "updated": [each.updated for each in timer.iterations],
        "devices": [each.device for each in timer.iterations],
        "compiled": isinstance(trainer.network, OptimizedModule),
        "compilations": [each.compilations for each in timer.iterations],
        "compile_seconds": compiler.seconds,
        "output": ", ".join(sorted(timer.outputs)),
        "scaler": trainer.grad_scaler is not None,
        "memory_format": memory_format,
        "waits": [each.wait for each in timer.iterations],
        "load_seconds": timer.load_seconds,
        "whole_seconds": whole_seconds,
        "iterations": [
            [each.epoch, list(each.patch_size), each.seconds, each.gflop]
            for each in timer.iterations
        ],
        "epochs": [
            [e.seconds - e.compile_seconds, e.steps.train_seconds, e.steps.val_seconds]
            for e in ledger.read()
            if isinstance(e, EpochWork)
        ],
        "peak_mb": peak_mb,
        "reserved_mb": reserved_mb,
        "reduce_seconds": sum(timer.reductions),
        "reduced": len(timer.reductions),
        "precision": found.precision,
        "cpu": str(torch.cpu.get_capabilities().get("cpu_name", "")),
        "amx": bool(torch.cpu.get_capabilities().get("amx_bf16")),
    }


def _own_mb() -> float:
    """Return the peak memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


if __name__ == "__main__":
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    run, settings = RunSpec(**spec["run"]), RunSettings.from_dict(spec["settings"])
    paths = Path(spec["plans_file"]), Path(spec["folder"])
    found = measure(run, settings, *paths, **spec["options"])
    print("\n" + json.dumps(found))
