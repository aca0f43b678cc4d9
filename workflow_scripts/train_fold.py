"""Train one arm on one fold of one task, or go on where it was interrupted, and validate it.

nnU-Net's own fold folder keeps all that must survive an interruption: checkpoints, the ledger and
the identity of the training. It is no output of the rule, since Snakemake deletes the outputs of a
failed job. The outputs are derived from it.
"""

import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import hardware
import lease
import nnunet
import training
from interruption import Deadline
from log import redirect
from time_limit import minutes_left


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
    stop_after_minutes: float | None = None,
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
        stop_after_minutes: time limit of this process, from its start; it ends by itself before.

    Raises:
        UserError: the folder holds a training of another kind, another process is training it, the
            device cannot be used, or the time limit came first (the next run goes on from there).
    """
    deadline = Deadline(stop_after_minutes)
    device, precision = hardware.prepare(settings, threads)
    nnunet.configure(
        processes=max(1, threads // 2),
        augmentation_workers=hardware.augmentation_workers(device, threads),
        results=results,
    )
    from attempt import Fold, go_on
    from run_record import describe_run, energy_table, epochs_table, stages_table, write_csv

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
    fold = Fold(
        run=run,
        parameters=trainer_parameters,
        settings=settings,
        energy=energy,
        mirroring=mirroring,
        plans_file=plans_file,
        identity=identity,
        cases=len(split["val"]),
        folder=folder,
        device=device,
        precision=precision,
        threads=threads,
    )

    def write_tables(entries: list[dict]) -> None:
        epochs = epochs_table(entries)
        write_csv(epochs, outputs["epochs"])
        write_csv(stages_table(epochs), outputs["stages"])
        write_csv(energy_table(entries), outputs["energy"])

    fold.check_identity()
    if not fold.is_done():
        wait_minutes = min(settings["wait_minutes"], deadline.seconds_left / 60)
        with lease.hold(folder, settings["lease_minutes"], wait_minutes) as held:
            if not fold.is_done():  # by the one that was waited for
                go_on(fold, held, deadline, write_tables)
    entries = fold.ledger.read()
    write_tables(entries)
    shutil.copyfile(fold.summary, outputs["summary"])
    names = json.loads((plans_file.parent / "dataset.json").read_text())["labels"]
    plan = plans["configurations"][run["configuration"]]
    scores = json.loads(fold.summary.read_text())
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
        stop_after_minutes=minutes_left(asked=snakemake.resources.get("runtime")),
    )
