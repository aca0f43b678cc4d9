"""Measure a short training of one trainer in its own process: `timed_training SPEC`.

SPEC is a JSON file. The measurements are printed as JSON on the last line of standard output.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from workflow_scripts.benchmark.compute_rate import measure_rates
from workflow_scripts.common import hardware, nnunet_setup
from workflow_scripts.common.trainer_protocol import as_curriculum_trainer
from workflow_scripts.records.energy_meter import EnergyMeter
from workflow_scripts.records.flop_counter import FlopTable
from workflow_scripts.records.ledger import Ledger
from workflow_scripts.records.recorder import Recorder
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


def measure(
    run: RunSpec,
    settings: RunSettings,
    plans_file: Path,
    folder: Path,
    *,
    rates: bool = False,
    full_precision: bool = False,
) -> dict[str, Any]:
    """Train as `train_fold` does, with its meter and ledger, and return the measurements.

    Args:
        run, settings, plans_file: as in `fold_session.Fold`.
        folder: an empty folder for nnU-Net's results.
        rates: also measure the compute rates of the network and of matrix products.
        full_precision: compute in fp32, even on a GPU.

    Returns:
        `iterations`: for each training iteration [epoch, patch size, seconds, gflop]; seconds count
        from the end of the previous one (or of the epoch's preparation) to its own end, including
        loading; `epochs`: for each [seconds, train_seconds, val_seconds]; `peak_mb`: peak memory
        of the GPU or, on a CPU, of this process and its workers; `precision`; `reduced` and
        `reduce_seconds`: number of batches whose frequencies a low-frequency arm reduced, and the
        seconds (on a CPU) that this took; `losses` and `waits`: loss of each training iteration,
        and the seconds that it waited for its batch; `load_seconds`: processor time of the workers;
        `whole_seconds`: from the start of the process to the final checkpoint; `rates`: result of
        `compute_rate.measure_rates`, if wanted.
    """
    found = hardware.prepare(settings.training, settings.training.threads)
    nnunet_setup.configure(found.processes, found.augmentation_workers, folder)

    began = time.monotonic()
    trainer = make_trainer(run, settings.training, plans_file, found.device, resume=False)
    network = getattr(trainer.network, "_orig_mod", trainer.network)
    flops = FlopTable(network, trainer.num_input_channels)
    hardware.set_memory_format(network, found.memory_format, found.device)
    if found.precision == "bf16":
        hardware.autocast_network(network)
    if full_precision:
        compute_in_full_precision(trainer, network)
    ledger = Ledger(folder / "ledger.jsonl")
    meter = EnergyMeter(settings.energy, found.gpu)
    Recorder(ledger, meter, flops, 1, began, lambda _: None).attach(trainer)
    curriculum = as_curriculum_trainer(trainer)
    iterations: list[list] = []
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
        scale = curriculum.scale_of_step("train") if curriculum else None
        output = step(batch)
        size = tuple(batch["data"].shape)
        now = time.monotonic()
        gflop = flops.training_step(size[0], size[2:], scale) / 1e9
        losses.append(float(output["loss"]))
        iterations.append([trainer.current_epoch, list(size[2:]), now - clock[0], gflop])
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
    epochs = [e for e in ledger.read() if e.get("phase") == "training"]
    measured = {"rates": measure_rates(trainer, found, flops)} if rates else {}
    return measured | {
        "losses": losses,
        "waits": waits,
        "load_seconds": loading[0],
        "whole_seconds": whole_seconds,
        "iterations": iterations,
        "epochs": [[e["seconds"], e["train_seconds"], e["val_seconds"]] for e in epochs],
        "peak_mb": peak,
        "reduce_seconds": sum(reducing),
        "reduced": len(reducing),
        "precision": found.precision,
        "cpu": str(torch.cpu.get_capabilities().get("cpu_name", "")),
        "amx": bool(torch.cpu.get_capabilities().get("amx_bf16")),
    }


if __name__ == "__main__":
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    run, settings = RunSpec(**spec["run"]), RunSettings.of(**spec["settings"])
    paths = Path(spec["plans_file"]), Path(spec["folder"])
    found = measure(run, settings, *paths, **spec["options"])
    print("\n" + json.dumps(found))
