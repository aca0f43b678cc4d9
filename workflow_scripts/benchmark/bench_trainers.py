"""Measure the trainers side by side: ratios from one run on one machine, with their goals."""

import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import pandas as pd

from workflow_scripts.benchmark.variants import (
    Measured,
    by_stage,
    iterations_table,
    run_variant,
    steady,
)
from workflow_scripts.common.console import announce, redirect
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

STOCK, CONSTANT = "nnUNetTrainer", "nnUNetTrainerConstantPatch"
PROGRESSIVE, RANDOM = "nnUNetTrainerProgressivePatch", "nnUNetTrainerRandomPatch"
LOW = "nnUNetTrainerLowFrequency"


def variants(
    stages: int, iterations: int, peer: str | None = None
) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return trainer and settings of each measured training, for a plan with `stages` stages.

    Every stage of `progressive` is one epoch of `iterations`; `random` has as many iterations in
    two epochs. Both change sizes, so they also write a checkpoint after every epoch, unlike in
    normal use. `low_frequency` has one epoch of equal computation per stage. A peer is compared
    with a `progressive` that writes as few checkpoints.
    """
    planned_size = {"epochs": 3, "iterations_per_epoch": iterations, "checkpoint_minutes": 10}
    epoch_per_stage = {
        "epochs": stages,
        "iterations_per_epoch": iterations,
        "checkpoint_minutes": 0,
    }
    random_sizes = {
        "epochs": 2,
        "iterations_per_epoch": stages * iterations // 2,
        "checkpoint_minutes": 0,
    }
    few_checkpoints = {**epoch_per_stage, "checkpoint_minutes": 10}
    others = (
        {"peer": (peer, few_checkpoints), "progressive_whole": (PROGRESSIVE, few_checkpoints)}
        if peer
        else {}
    )
    return {
        **others,
        "stock": (STOCK, planned_size),
        "constant": (CONSTANT, planned_size),
        "progressive": (PROGRESSIVE, epoch_per_stage),
        "random": (RANDOM, random_sizes),
        "low_frequency": (LOW, {**epoch_per_stage, "epochs": len(SCHEDULES["resnet"].fractions)}),
        "deterministic": (CONSTANT, {**planned_size, "deterministic": True}),
        "fp32": (CONSTANT, {**planned_size, "precision": "fp32"}),
    }


def over_flops(measured: Measured, arm: str) -> float:
    """Return an arm's training time over `constant`'s, divided by the same ratio of FLOPs.

    Every size of a schedule has the same share of iterations. A size's time is the median of its
    iterations without the first one, which contains the cost of the switch.
    """
    sizes = by_stage(measured[arm])
    constant = [row[3] for row in measured["constant"]["iterations"]]
    seconds = sizes["seconds"].mean() / steady(measured["constant"])
    return seconds / (sizes["gflop"].mean() / mean(constant))


def equal_compute_over_flops(measured: Measured) -> float:
    """Return `over_flops` for `low_frequency`, whose sizes have unequal shares of the iterations.

    The mean is used here, because few iterations of the stages with replay load a batch.
    """
    table = iterations_table(measured["low_frequency"])
    later = table[table.groupby("epoch").cumcount() > 0]
    constant = steady(measured["constant"]) / mean(
        row[3] for row in measured["constant"]["iterations"]
    )
    return float(later["seconds"].sum() / later["gflop"].sum() / constant)


def reducing_share(measured: Measured) -> float:
    """Return the share of reducing batches in the time of the iterations at reduced sizes."""
    low_frequency = measured["low_frequency"]
    planned = low_frequency["iterations"][-1][1]
    seconds = sum(row[2] for row in low_frequency["iterations"] if row[1] != planned)
    return low_frequency["reduce_seconds"] / seconds


def loads_an_iteration(measured: Measured) -> float:
    """Return loaded batches per iteration; at the planned size every iteration loads one."""
    low_frequency = measured["low_frequency"]
    planned = sum(
        row[1] == low_frequency["iterations"][-1][1] for row in low_frequency["iterations"]
    )
    return (low_frequency["reduced"] + planned) / len(low_frequency["iterations"])


def stage_switch(measured: Measured) -> float:
    """Return the median seconds by which a stage's first iteration is slower than later ones."""
    sizes = by_stage(measured["progressive"]).iloc[1:]
    return float((sizes["first"] - sizes["seconds"]).median())


def epoch_overhead(measured: Measured) -> float:
    """Return the median seconds of an epoch outside its steps: logs, plot, meter and checkpoint."""
    epochs = measured["progressive"]["epochs"][1:]
    return median(seconds - train - val for seconds, train, val in epochs)


def epoch_seconds(measured: dict[str, Any]) -> float:
    """Return the mean seconds of training and validation steps per epoch after the first."""
    return mean(train + val for _, train, val in measured["epochs"][1:])


def network_rate(measured: Measured, precision: str) -> float | None:
    """Return network FLOP/s over matrix-product FLOP/s for `constant` in a precision."""
    for name in ("constant", "fp32"):
        training = measured.get(name, {})
        if training.get("precision") == precision and "rates" in training:
            return training["rates"]["network"] / training["rates"]["matmul"]
    return None


def peer_ratio(measured: Measured) -> float | None:
    """Return the peer's seconds from process start to final checkpoint over `progressive`'s."""
    if "peer" not in measured:
        return None
    return measured["peer"]["whole_seconds"] / measured["progressive_whole"]["whole_seconds"]


@dataclass(frozen=True)
class Figure:
    """A figure of the bench.

    Attributes:
        compute: returns it from one repeat's measurements; None if it was not measured.
        goal: the maximum that it should be.
        at_least: `goal` is the minimum instead.
    """

    compute: Callable[[Measured], float | None]
    goal: float | None = None
    at_least: bool = False

    def is_met(self, value: float) -> bool | None:
        """Return whether a value meets the goal, or None without a goal."""
        if self.goal is None:
            return None
        return bool(value >= self.goal if self.at_least else value <= self.goal)


BF16 = "bf16 / fp32 training time (goal: a processor with AMX)"
FIGURES = {
    "epoch of constant / epoch of stock nnUNetTrainer": Figure(
        lambda m: epoch_seconds(m["constant"]) / epoch_seconds(m["stock"]), 1.00
    ),
    "progressive / constant: training time over FLOPs": Figure(
        lambda m: over_flops(m, "progressive"), 1.02
    ),
    "random / constant: training time over FLOPs": Figure(lambda m: over_flops(m, "random"), 1.02),
    "low_frequency / constant: training time over FLOPs": Figure(equal_compute_over_flops, 1.10),
    "low_frequency: share of the low-pass in iteration time": Figure(reducing_share, 0.02),
    "low_frequency: loaded batches per iteration": Figure(loads_an_iteration),
    "network FLOP/s / matrix-product FLOP/s, fp32": Figure(
        lambda m: network_rate(m, "fp32"), 0.65, at_least=True
    ),
    "network FLOP/s / matrix-product FLOP/s, bf16": Figure(
        lambda m: network_rate(m, "bf16"), 0.45, at_least=True
    ),
    BF16: Figure(lambda m: steady(m["constant"]) / steady(m["fp32"]) if "fp32" in m else None, 0.5),
    "stage switch, seconds": Figure(stage_switch, 0.5),
    "peak memory random / constant": Figure(
        lambda m: m["random"]["peak_mb"] / m["constant"]["peak_mb"], 1.2
    ),
    "deterministic / default training time": Figure(
        lambda m: steady(m["deterministic"]) / steady(m["constant"])
    ),
    "epoch time outside its steps, seconds (goal: 2 % of 60 s)": Figure(epoch_overhead, 1.2),
    "peer / progressive: process start to final checkpoint": Figure(
        peer_ratio, 1.25, at_least=True
    ),
}


def summarise(task: str, repeats: list[Measured]) -> pd.DataFrame:
    """Return one row per figure: median, minimum and maximum over the repeats, goal, goal met."""
    rows = []
    for name, figure in FIGURES.items():
        values = [value for m in repeats if (value := figure.compute(m)) is not None]
        if not values:
            continue
        if name == BF16 and not repeats[0]["constant"]["amx"]:
            figure = replace(figure, goal=None)
        row = {"task": task, "figure": name, "median": median(values), "min": min(values)}
        row |= {"max": max(values), "repeats": len(values), "goal": figure.goal}
        row |= {"at_least": figure.at_least, "met": figure.is_met(median(values))}
        rows.append(row)
    return pd.DataFrame(rows)


def bench_task(
    run: RunSpec,
    settings: RunSettings,
    plans_file: Path,
    folder: Path,
    *,
    repeats: int,
    iterations: int,
    peer: str | None = None,
) -> tuple[pd.DataFrame, Measured]:
    """Measure all variants of one task in turn, `repeats` times; return figures and last repeat.

    Every second repeat runs in reverse order, so that a drift of the machine favours no variant.

    Args:
        run: the training; arm and trainer are replaced by each variant's.
        settings: the settings; length and conditions are replaced by each variant's.
        plans_file: nnU-Net's plans.
        folder: where a temporary folder is made for each training.
        repeats: repeats of every variant.
        iterations: iterations of each epoch (`variants`).
        peer: name of a third-party trainer, which nnU-Net finds in `nnUNet_extTrainer`.
    """
    plan = read_json(plans_file)["configurations"][run.configuration]
    strides = plan["architecture"]["arch_kwargs"]["strides"]
    planned = PatchPlan.from_strides(plan["patch_size"], strides, plan["batch_size"])
    stages = len(plan_stages(planned, CurriculumSettings("progressive")))
    chosen = variants(stages, iterations, peer)
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
                rates=name in ("constant", "fp32"),
            )
        every.append(measured)
    return summarise(run.task, every), every[-1]


def describe_profile(task: str, measured: Measured) -> str:
    """Return a line with the shares of processor time in a step of `constant`."""
    shares = measured["constant"]["rates"]["profile"]
    listed = ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())
    return f"{task}, processor time of a step of constant: {listed}."


def describe_goal(row: Any) -> str:
    """Return a figure's goal and whether it is met, from a row of `summarise`."""
    if pd.isna(row.goal):
        return "-"
    return f"{'≥' if row.at_least else '≤'} {row.goal:g} {'met' if row.met else 'NOT met'}"


def to_markdown(table: pd.DataFrame, *notes: str) -> str:
    """Return the figures as a page, with paragraphs on machine and profile."""
    rows = pd.DataFrame(
        {
            "task": table["task"],
            "figure": table["figure"],
            "median (min to max)": [
                f"{row.median:.3f} ({row.min:.3f} to {row.max:.3f})" for row in table.itertuples()
            ],
            "goal": [describe_goal(row) for row in table.itertuples()],
        }
    )
    machine, *others = notes
    return "\n\n".join([machine, pipe_table(rows), *others]) + "\n"


def describe_machine(measured: dict[str, Any], threads: int, repeats: int) -> str:
    """Return a paragraph with commit, versions, processor and precision."""
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
            peer=params.peer,
        )
        for run, plans in zip(params.runs, snakemake.input.plans, strict=True)
    ]
    figures = pd.concat([table for table, _ in results], ignore_index=True)
    figures.to_csv(output, index=False)
    heading = describe_machine(results[0][1]["constant"], threads, params.repeats)
    profiles = [
        describe_profile(run["task"], last)
        for run, (_, last) in zip(params.runs, results, strict=True)
        if last["constant"]["rates"]["profile"]
    ]
    page = to_markdown(figures, heading, *profiles)
    Path(snakemake.output.page).write_text(page, encoding="utf-8")
