"""Train one arm on one fold of one task, or go on where it was interrupted, and validate it.

nnU-Net's own fold folder keeps all that must survive an interruption: checkpoints, the ledger and
the identity of the training. It is no output of the rule, since Snakemake deletes the outputs of a
failed job. The outputs are derived from it.
"""

import json
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import hardware
import nnunet
import training
from log import redirect

Entries = list[dict[str, Any]]


def train_fold(
    *,
    run: dict[str, Any],
    trainer_parameters: dict[str, Any],
    settings: dict[str, Any],
    energy: dict[str, Any],
    mirroring: bool,
    results: Path,
    plans_file: Path,
    splits_file: Path,
    outputs: dict[str, Path],
    threads: int,
) -> None:
    """Bring the training to its end and write the files of the run.

    Args:
        run: study, task, dataset, arm, trainer, fold, configuration, plans (names).
        trainer_parameters: attributes that the arm sets on its trainer.
        settings: the config's `training` section.
        energy: the config's `energy` section.
        mirroring: test-time mirroring in the final validation.
        results: nnU-Net's results folder of the arm.
        plans_file, splits_file: nnU-Net's plans and splits of the dataset.
        outputs: where to write run, epochs, stages, energy and summary.
        threads: cores to use.

    Raises:
        UserError: the folder holds a training of another kind, or the device cannot be used.
    """
    device, precision = hardware.prepare(settings, threads)
    nnunet.configure(
        processes=max(1, threads // 2),
        augmentation_workers=hardware.augmentation_workers(device, threads),
        results=results,
    )
    from energy import EnergyMeter
    from flops import FlopTable
    from run_record import describe_run, energy_table, epochs_table, stages_table, write_csv
    from trainers.curricula.resuming import TrainingStopped
    from training_record import Ledger, Recorder

    meter = EnergyMeter(**energy)
    began = time.monotonic()
    plans = json.loads(plans_file.read_text())
    split = json.loads(splits_file.read_text())[run["fold"]]
    identity = _identify(run, trainer_parameters, settings, plans, split, precision)
    if settings["deterministic"]:
        identity |= {"deterministic": True, "threads": threads, "device": _device_name(device)}
    folder = (
        results
        / run["dataset"]
        / f"{run['trainer']}__{run['plans']}__{run['configuration']}"
        / f"fold_{run['fold']}"
    )
    final, latest = folder / "checkpoint_final.pth", folder / "checkpoint_latest.pth"
    summary = folder / "validation" / "summary.json"
    ledger = Ledger(folder / "ledger.jsonl")
    training.check_identity(
        identity,
        folder / "identity.json",
        started=final.exists() or latest.exists(),
        finished=final.exists(),
    )

    def write_tables(entries: Entries) -> None:
        epochs = epochs_table(entries)
        write_csv(epochs, outputs["epochs"])
        write_csv(stages_table(epochs), outputs["stages"])
        write_csv(energy_table(entries), outputs["energy"])

    if not (final.exists() and summary.exists() and _validated(ledger.read(), mirroring)):
        trainer = training.make_trainer(
            run, trainer_parameters, settings, plans_file, device, resume=latest.exists()
        )
        network = getattr(trainer.network, "_orig_mod", trainer.network)
        flops = FlopTable(network, trainer.num_input_channels)
        trainer.my_init_kwargs["identity"] = identity
        if final.exists() or latest.exists():
            training.load_checkpoint(trainer, final if final.exists() else latest, identity)
        if precision == "bf16":
            hardware.autocast_network(network)
        done = settings["epochs"] if final.exists() else trainer.current_epoch
        attempt = 1 + sum(entry["entry"] == "attempt" for entry in ledger.read())
        started = {"entry": "attempt", "attempt": attempt, "resumed_at": done, "threads": threads}
        started["resumed_within"] = getattr(trainer, "iterations_resumed", 0)
        started |= {"device": device, "precision": precision, "meter": meter.describe()}
        ledger.append(started | _describe_software(device, identity["trainer_code"]))
        progress = training.Progress(f"{run['task']} {run['arm']} fold {run['fold']}")

        def after_epoch(entries: Entries) -> None:
            write_tables(entries)
            last = entries[-1]
            note = f", patch {last['patch_size']}, pseudo Dice {last['pseudo_dice']:.3f}"
            progress.show(last["epoch"] + 1, note)

        recorder = Recorder(ledger, meter, flops, attempt, began, after_epoch)
        try:
            if not final.exists():
                recorder.attach(trainer)
                progress.start(done, settings["epochs"], "epoch")
                with training.stoppable(trainer, progress.title):
                    trainer.run_training()
            recorder.finish("setup" if done == settings["epochs"] else "end of training")
            progress.start(0, len(split["val"]), "validation case")
            if not mirroring:
                trainer.inference_allowed_mirroring_axes = None
            with training.counted_predictions(trainer, progress.show):
                trainer.perform_actual_validation(False)
            recorder.finish("validation", mirroring=mirroring, ended=training.now())
        except TrainingStopped:
            write_tables(ledger.read())
            raise
        except BaseException:
            recorder.finish("interrupted")
            raise

    entries = ledger.read()
    write_tables(entries)
    shutil.copyfile(summary, outputs["summary"])
    names = json.loads((plans_file.parent / "dataset.json").read_text())["labels"]
    plan = plans["configurations"][run["configuration"]]
    scores = json.loads(summary.read_text())
    record = describe_run({**run, **identity}, plan, names, entries, scores, folder)
    nnunet.write_json(record, outputs["run"])


def _identify(
    run: dict[str, Any],
    parameters: dict[str, Any],
    settings: dict[str, Any],
    plans: dict[str, Any],
    split: dict[str, list[str]],
    precision: str,
) -> dict[str, Any]:
    """Return all that decides the weights: a training may only go on where none of it differs."""
    length = ("epochs", "iterations_per_epoch", "validation_iterations_per_epoch")
    identity = {
        **{key: run[key] for key in ("task", "trainer", "fold", "configuration")},
        "parameters": parameters,
        "plans_hash": nnunet.json_hash(plans),
        "splits_hash": nnunet.json_hash(split),
        **{key: settings[key] for key in (*length, "seed")},
        "precision": precision,
        "trainer_code": training.trainer_code_hash(),
        **training.versions(),
    }
    del identity["codecarbon"]
    return identity


def _device_name(device: str) -> str:
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    return str(torch.cpu.get_capabilities().get("cpu_name", device))


def _describe_software(device: str, trainer_code: str) -> dict[str, Any]:
    """Return what an attempt runs with and when it began, for the ledger."""
    import torch

    return {
        "started": training.now(),
        "git_commit": training.git_commit(),
        "trainer_code": trainer_code,
        "versions": training.versions(),
        "gpu_model": torch.cuda.get_device_name() if device == "cuda" else None,
    }


def _validated(entries: Entries, mirroring: bool) -> bool:
    """Tell whether the last final validation was done, and as it is wanted now."""
    done = [entry["mirroring"] for entry in entries if entry.get("phase") == "validation"]
    return bool(done) and done[-1] == mirroring


if __name__ == "__main__":
    redirect(snakemake.log[0])
    # A scheduler's SIGTERM then passes through `finally` and `except` as any other way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    train_fold(
        run=snakemake.params.run,
        trainer_parameters=snakemake.params.parameters,
        settings=snakemake.params.training,
        energy=snakemake.params.energy,
        mirroring=snakemake.params.mirroring,
        results=Path(snakemake.params.results),
        plans_file=Path(snakemake.input.plans),
        splits_file=Path(snakemake.input.splits),
        outputs={name: Path(path) for name, path in snakemake.output.items()},
        threads=snakemake.threads,
    )
