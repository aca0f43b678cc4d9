"""Measure a short training of one trainer in its own process: `timed_training SPEC`.

SPEC is a JSON file. The measurements are printed as JSON on the last line of standard output.
"""

import json
import resource
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch._dynamo import OptimizedModule

from workflow_scripts.benchmark.compute_rate import measure_rates
from workflow_scripts.common import hardware, nnunet_setup
from workflow_scripts.common.trainer_protocol import as_curriculum_trainer
from workflow_scripts.records.compilation import compilation_clock
from workflow_scripts.records.energy_meter import EnergyMeter
from workflow_scripts.records.flop_counter import FlopTable
from workflow_scripts.records.ledger import Ledger
from workflow_scripts.records.recorder import Recorder
from workflow_scripts.records.updates import UpdateCounter
from workflow_scripts.study.settings import RunSettings
from workflow_scripts.study.specification import RunSpec
from workflow_scripts.training.trainer_factory import make_trainer


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
        run, settings, plans_file: as in `fold_session.Fold`.
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
    clock_of_compiler = compilation_clock()
    began = time.monotonic()
    trainer = make_trainer(run, settings.training, plans_file, found.device, resume=False)
    network = getattr(trainer.network, "_orig_mod", trainer.network)
    flops = FlopTable(network, trainer.num_input_channels)
    memory_format = hardware.set_memory_format(network, found.memory_format, found.device)
    if found.precision == "bf16":
        hardware.autocast_network(network)
    if full_precision:
        compute_in_full_precision(trainer, network)
    ledger = Ledger(folder / "ledger.jsonl")
    meter = EnergyMeter(settings.energy, found.gpu)
    Recorder(ledger, meter, flops, 1, began, lambda _: None).attach(trainer)
    curriculum = as_curriculum_trainer(trainer)
    updates = UpdateCounter(trainer)
    iterations: list[list] = []
    updated: list[bool] = []
    devices: list[str] = []
    compilations: list[int] = []
    outputs: set[str] = set()
    trainer.loss.register_forward_pre_hook(
        lambda _, tensors: outputs.add(str(tensors[0][0].dtype).removeprefix("torch."))
    )
    losses: list[float] = []
    waits: list[float] = []
    clock = [0.0]
    step, start, end = trainer.train_step, trainer.on_train_epoch_start, trainer.on_train_end
    memory, loading = [0.0], [0.0]
    reducing: list[float] = []

    def time_reducing(batches: Any) -> None:
        reduce = batches._reduce

        def timed(*arguments: Any) -> dict:
            before = time.monotonic()
            reduced = reduce(*arguments)
            reducing.append(time.monotonic() - before)
            return reduced

        batches._reduce = timed

    def timed_start() -> None:
        start()
        clock[0] = time.monotonic()

    def timed_step(batch: dict) -> dict:
        waits.append(time.monotonic() - clock[0])
        devices.append(batch["data"].device.type)
        updates.follow()
        before = updates.count, clock_of_compiler.count, clock_of_compiler.seconds
        scale = curriculum.scale_of_step("train") if curriculum else None
        output = step(batch)
        size = tuple(batch["data"].shape)
        now = time.monotonic()
        gflop = flops.training_step(size[0], size[2:], scale) / 1e9
        losses.append(float(output["loss"]))
        seconds = now - clock[0] - (clock_of_compiler.seconds - before[2])
        iterations.append([trainer.current_epoch, list(size[2:]), seconds, gflop])
        updated.append(updates.count > before[0])
        compilations.append(clock_of_compiler.count - before[1])
        clock[0] = time.monotonic()
        return output

    def measured_end() -> None:
        children = psutil.Process().children(recursive=True)
        memory[0] = sum(child.memory_info().rss for child in children) / 2**20
        loading[0] = sum(sum(child.cpu_times()[:2]) for child in children)
        end()

    prepare = trainer.on_train_start

    def prepared() -> None:
        prepare()
        if hasattr(trainer.dataloader_train, "_reduce"):
            time_reducing(trainer.dataloader_train)

    trainer.on_train_start = prepared
    trainer.train_step, trainer.on_train_epoch_start = timed_step, timed_start
    trainer.on_train_end = measured_end
    trainer.run_training()
    whole_seconds = time.time() - psutil.Process().create_time()
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    own_mb = own / 2**20 if sys.platform == "darwin" else own / 2**10
    on_gpu = found.device == "cuda"
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else own_mb + memory[0]
    reserved = torch.cuda.max_memory_reserved() / 2**20 if on_gpu else None
    epochs = [e for e in ledger.read() if e.get("phase") == "training"]
    measured = {"rates": measure_rates(trainer, found, flops)} if rates else {}
    return measured | {
        "losses": losses,
        "updated": updated,
        "devices": devices,
        "compiled": isinstance(trainer.network, OptimizedModule),
        "compilations": compilations,
        "compile_seconds": clock_of_compiler.seconds,
        "output": ", ".join(sorted(outputs)),
        "scaler": trainer.grad_scaler is not None,
        "memory_format": memory_format,
        "waits": waits,
        "load_seconds": loading[0],
        "whole_seconds": whole_seconds,
        "iterations": iterations,
        "epochs": [
            [e["seconds"] - e["compile_seconds"], e["train_seconds"], e["val_seconds"]]
            for e in epochs
        ],
        "peak_mb": peak,
        "reserved_mb": reserved,
        "reduce_seconds": sum(reducing),
        "reduced": len(reducing),
        "precision": found.precision,
        "cpu": str(torch.cpu.get_capabilities().get("cpu_name", "")),
        "amx": bool(torch.cpu.get_capabilities().get("amx_bf16")),
    }


if __name__ == "__main__":
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    run, settings = RunSpec(**spec["run"]), RunSettings.from_dict(spec["settings"])
    paths = Path(spec["plans_file"]), Path(spec["folder"])
    found = measure(run, settings, *paths, **spec["options"])
    print("\n" + json.dumps(found))
