"""Measure the trainers side by side: ratios of one run on one machine, against their goals."""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import pandas as pd

from workflow_scripts.common.console import announce, redirect
from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import read_json
from workflow_scripts.common.formatting import pipe_table
from workflow_scripts.common.hardware import find_device, find_precision
from workflow_scripts.study.settings import RunSettings
from workflow_scripts.study.specification import RunSpec
from workflow_scripts.trainers.curricula.schedules.frequency_stages import SCHEDULES
from workflow_scripts.trainers.curricula.schedules.patch_plan import PatchPlan
from workflow_scripts.trainers.curricula.schedules.schedule import plan_stages
from workflow_scripts.trainers.curricula.schedules.settings import CurriculumSettings
from workflow_scripts.training.provenance import git_commit, versions

ROOT = Path(__file__).resolve().parents[2]
MODULE = "workflow_scripts.benchmark.timed_training"
STOCK, CONSTANT = "nnUNetTrainer", "nnUNetTrainerConstantPatch"
PROGRESSIVE, RANDOM = "nnUNetTrainerProgressivePatch", "nnUNetTrainerRandomPatch"
LOW = "nnUNetTrainerLowFrequency"
Measured = dict[str, dict[str, Any]]
"""What `timed_training.measure` returned, by variant."""


def variants(stages: int, iterations: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return trainer and settings of each measured training, for a plan with so many stages.

    Every stage of `progressive` is one epoch of `iterations`; `random` has two epochs of as many
    iterations as there are stages. The sizes change in both, so they also write a checkpoint after
    every epoch, as no user would. `low_frequency` has an epoch of equal computation a stage.
    """
    flat = {"epochs": 3, "iterations_per_epoch": iterations, "checkpoint_minutes": 10}
    grown = {"epochs": stages, "iterations_per_epoch": iterations, "checkpoint_minutes": 0}
    drawn = {"epochs": 2, "iterations_per_epoch": stages * iterations // 2, "checkpoint_minutes": 0}
    return {
        "stock": (STOCK, flat),
        "constant": (CONSTANT, flat),
        "progressive": (PROGRESSIVE, grown),
        "random": (RANDOM, drawn),
        "low_frequency": (LOW, {**grown, "epochs": len(SCHEDULES["resnet"].fractions)}),
        "deterministic": (CONSTANT, {**flat, "deterministic": True}),
        "fp32": (CONSTANT, {**flat, "precision": "fp32"}),
    }


def steady(measured: dict[str, Any]) -> float:
    """Median seconds of an iteration after the first epoch, in which kernels are chosen."""
    return median(seconds for epoch, _, seconds, _ in measured["iterations"] if epoch > 0)


def by_stage(measured: dict[str, Any]) -> pd.DataFrame:
    """For each patch size: first and median of the later seconds of its iterations, and GFLOP."""
    table = pd.DataFrame(measured["iterations"], columns=["epoch", "patch", "seconds", "gflop"])
    groups = table.groupby(table["patch"].map(tuple), sort=False)
    return groups.agg(
        first=("seconds", "first"),
        seconds=("seconds", lambda seconds: seconds.iloc[1:].median()),
        gflop=("gflop", "first"),
    )


def over_flops(measured: Measured, arm: str) -> float:
    """Training time of an arm over `constant`'s, divided by the same ratio of FLOPs.

    Every size of a schedule has the same share of iterations; a size's time is the median of its
    iterations without the first one, which is the cost of the switch.
    """
    sizes = by_stage(measured[arm])
    constant = [row[3] for row in measured["constant"]["iterations"]]
    seconds = sizes["seconds"].mean() / steady(measured["constant"])
    return seconds / (sizes["gflop"].mean() / mean(constant))


def equal_compute_over_flops(measured: Measured) -> float:
    """As `over_flops` for `low_frequency`, whose sizes have unequal shares of the iterations.

    The mean counts here, since of the iterations that repeat a batch few load one.
    """
    table = pd.DataFrame(
        measured["low_frequency"]["iterations"], columns=["epoch", "patch", "seconds", "gflop"]
    )
    later = table[table.groupby("epoch").cumcount() > 0]
    constant = steady(measured["constant"]) / mean(
        row[3] for row in measured["constant"]["iterations"]
    )
    return float(later["seconds"].sum() / later["gflop"].sum() / constant)


def reducing_share(measured: Measured) -> float:
    """Share of the time of the iterations at reduced sizes in which batches are reduced."""
    found = measured["low_frequency"]
    planned = found["iterations"][-1][1]
    seconds = sum(row[2] for row in found["iterations"] if row[1] != planned)
    return found["reduce_seconds"] / seconds


def loads_an_iteration(measured: Measured) -> float:
    """Loaded batches over iterations; at the planned size every iteration loads one."""
    found = measured["low_frequency"]
    planned = sum(row[1] == found["iterations"][-1][1] for row in found["iterations"])
    return (found["reduced"] + planned) / len(found["iterations"])


def stage_switch(measured: Measured) -> float:
    """Median seconds by which the first iteration of a stage is slower than its later ones."""
    sizes = by_stage(measured["progressive"]).iloc[1:]
    return float((sizes["first"] - sizes["seconds"]).median())


def epoch_overhead(measured: Measured) -> float:
    """Median seconds of an epoch outside its steps: logs, plot, meter and a checkpoint."""
    epochs = measured["progressive"]["epochs"][1:]
    return median(seconds - train - val for seconds, train, val in epochs)


def epoch_seconds(measured: dict[str, Any]) -> float:
    """Mean seconds of the training and validation steps of an epoch after the first."""
    return mean(train + val for _, train, val in measured["epochs"][1:])


BF16 = "bf16 / fp32 training time (goal: a processor with AMX)"
FIGURES: dict[str, tuple[float | None, Callable[[Measured], float | None]]] = {
    "epoch of constant / epoch of stock nnUNetTrainer": (
        1.02,
        lambda m: epoch_seconds(m["constant"]) / epoch_seconds(m["stock"]),
    ),
    "progressive / constant: training time over FLOPs": (
        1.10,
        lambda m: over_flops(m, "progressive"),
    ),
    "random / constant: training time over FLOPs": (1.10, lambda m: over_flops(m, "random")),
    "low_frequency / constant: training time over FLOPs": (1.10, equal_compute_over_flops),
    "low_frequency: share of the low-pass in the time of its iterations": (0.02, reducing_share),
    "low_frequency: loaded batches an iteration": (None, loads_an_iteration),
    BF16: (
        0.5,
        lambda m: steady(m["constant"]) / steady(m["fp32"]) if "fp32" in m else None,
    ),
    "stage switch, seconds": (0.5, stage_switch),
    "peak memory random / constant": (
        1.2,
        lambda m: m["random"]["peak_mb"] / m["constant"]["peak_mb"],
    ),
    "deterministic / default training time": (
        None,
        lambda m: steady(m["deterministic"]) / steady(m["constant"]),
    ),
    "epoch outside its steps, seconds (goal: 2 % of 60 s)": (1.2, epoch_overhead),
}


def summarise(task: str, repeats: list[Measured]) -> pd.DataFrame:
    """One row per figure: median, least and greatest over the repeats, goal, whether it is met."""
    rows = []
    for figure, (goal, compute) in FIGURES.items():
        values = [value for m in repeats if (value := compute(m)) is not None]
        if not values:
            continue
        row = {"task": task, "figure": figure, "median": median(values), "min": min(values)}
        if figure == BF16 and not repeats[0]["constant"]["amx"]:
            goal = None
        row |= {"max": max(values), "repeats": len(values), "goal": goal}
        rows.append(row | {"met": None if goal is None else bool(median(values) <= goal)})
    return pd.DataFrame(rows)


def run_variant(
    run: RunSpec, settings: RunSettings, plans_file: Path, folder: Path
) -> dict[str, Any]:
    """Measure one training in a fresh process. Raises UserError with the end of its output."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name) / "spec.json"
        spec = {"run": asdict(run), "settings": asdict(settings), "folder": name}
        path.write_text(json.dumps({**spec, "plans_file": str(plans_file.absolute())}))
        done = subprocess.run(
            [sys.executable, "-m", MODULE, path],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise UserError(f"{run.trainer} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def bench_task(
    run: RunSpec,
    settings: RunSettings,
    plans_file: Path,
    folder: Path,
    *,
    repeats: int,
    iterations: int,
) -> tuple[pd.DataFrame, Measured]:
    """Measure all variants of one task in turn, `repeats` times; return figures and last repeat.

    Every second repeat goes backwards, so that a drift of the machine favours none of them.

    Args:
        run: whose arm and trainer are those of each variant in turn.
        settings: whose length and circumstances are those of each variant.
        plans_file: nnU-Net's plans.
        folder: where a folder is made for each training, and removed.
        repeats: of every variant.
        iterations: of each epoch (`variants`).
    """
    plan = read_json(plans_file)["configurations"][run.configuration]
    strides = plan["architecture"]["arch_kwargs"]["strides"]
    planned = PatchPlan.from_strides(plan["patch_size"], strides, plan["batch_size"])
    stages = len(plan_stages(planned, CurriculumSettings("progressive")))
    chosen = variants(stages, iterations)
    training = replace(settings.training, validation_iterations_per_epoch=2)
    if find_precision(training.precision, find_device(training.device)) != "bf16":
        del chosen["fp32"]
    every = []
    for number in range(1, repeats + 1):
        measured: Measured = {}
        for name in list(chosen) if number % 2 else reversed(chosen):
            trainer, changes = chosen[name]
            announce(f"bench: {run.task}, repeat {number} of {repeats}, {name}")
            parameters = {"plot_seconds": 0.0} if name == "progressive" else {}
            measured[name] = run_variant(
                replace(run, arm=name, trainer=trainer, parameters=parameters),
                replace(settings, training=replace(training, **changes)),
                plans_file,
                folder,
            )
        every.append(measured)
    return summarise(run.task, every), every[-1]


def to_markdown(table: pd.DataFrame, machine: str) -> str:
    """Write the figures as a page."""
    rows = pd.DataFrame(
        {
            "task": table["task"],
            "figure": table["figure"],
            "median (min to max)": [
                f"{row.median:.3f} ({row.min:.3f} to {row.max:.3f})" for row in table.itertuples()
            ],
            "goal": [
                "-" if pd.isna(row.goal) else f"≤ {row.goal:g} {'met' if row.met else 'NOT met'}"
                for row in table.itertuples()
            ],
        }
    )
    return f"{machine}\n\n{pipe_table(rows)}\n"


def describe_machine(measured: dict[str, Any], threads: int, repeats: int) -> str:
    """One paragraph: commit, versions, processor, precision."""
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    return (
        f"Commit {git_commit()}; {packages}; {measured['cpu'] or platform.processor()} with "
        f"{threads} threads, {'with' if measured['amx'] else 'without'} AMX, precision "
        f"{measured['precision']}; medians of {repeats} interleaved repeats."
    )


if __name__ == "__main__":
    redirect(snakemake.log[0])
    output = Path(snakemake.output.table)
    output.parent.mkdir(parents=True, exist_ok=True)
    params, threads = snakemake.params, snakemake.threads
    results = [
        bench_task(
            RunSpec(
                study=output.parent.name,
                dataset=Path(plans).parent.name,
                plans=Path(plans).stem,
                arm="constant",
                trainer=CONSTANT,
                **run,
            ),
            RunSettings.of(params.training, params.energy, mirroring=False, threads=threads),
            Path(plans),
            output.parent,
            repeats=params.repeats,
            iterations=params.iterations,
        )
        for run, plans in zip(params.runs, snakemake.input.plans, strict=True)
    ]
    figures = pd.concat([table for table, _ in results], ignore_index=True)
    figures.to_csv(output, index=False)
    heading = describe_machine(results[0][1]["constant"], threads, params.repeats)
    Path(snakemake.output.page).write_text(to_markdown(figures, heading), encoding="utf-8")
