"""Measure the cost of loading a batch at each stage of each arm, on the ten published plans.

Volumes of noise with blocks of labels replace the tasks' images: the cost of loading depends on
sizes, not on contents. The cost is the processor time of a single thread.
"""

import tempfile
import time
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd
import torch
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

from workflow_scripts.common import nnunet_setup
from workflow_scripts.common.console import announce, redirect
from workflow_scripts.common.formatting import pipe_table
from workflow_scripts.forecast.plans import Plan, published_plans
from workflow_scripts.trainers.curricula.batches.loading import ScheduledDataLoader
from workflow_scripts.trainers.curricula.schedules.schedule import Schedule

CONFIGURATION = "3d_fullres"
CONSTANT = "nnUNetTrainerConstantPatch"
ARMS = {
    "progressive": "nnUNetTrainerProgressivePatch",
    "progressive_plus": "nnUNetTrainerProgressivePlusPatch",
    "progressive_efficiency": "nnUNetTrainerProgressiveEfficiencyPatch",
    "progressive_performance": "nnUNetTrainerProgressivePerformancePatch",
}
"""The arms whose patches grow; `random` draws from the sizes of `progressive`."""

FEWEST = 3
"""Minimum number of measured batches per stage."""

CASES = 6
LARGEST = 2.0
"""Maximum voxels of a volume's axis, as a multiple of the patch's; a crop never needs more."""

GOAL, GOAL_OF_FEW, FEW = 1.1, 0.5, 0.3
"""Maximum loading time relative to `constant`; and if a batch has at most `FEW` of its voxels."""

Row = dict[str, Any]


def write_cases(plan: Plan, folder: Path) -> nnUNetDatasetBlosc2:
    """Write synthetic preprocessed cases with a plan's size, channels and labels; open them."""
    chosen = plan.plans["configurations"][CONFIGURATION]
    patch = chosen["patch_size"]
    shape = [
        int(min(median, LARGEST * size))
        for median, size in zip(chosen["median_image_size_in_voxels"], patch, strict=True)
    ]
    labels = len(plan.dataset["labels"])
    names = [f"case_{number}" for number in range(CASES)]
    for number, name in enumerate(names):
        rng = np.random.default_rng(number)
        data = rng.normal(size=(len(plan.dataset["channel_names"]), *shape)).astype(np.float32)
        # Blocks are an eighth of the patch; nine in ten are background.
        edges = [max(1, size // 8) for size in patch]
        blocks = [ceil(size / edge) for size, edge in zip(shape, edges, strict=True)]
        drawn = rng.integers(1, labels, blocks) * (rng.random(blocks) < 0.1)
        seg = np.kron(drawn, np.ones(edges, int))[tuple(slice(size) for size in shape)]
        seg = np.ascontiguousarray(seg[None], np.int16)
        places = {label: np.argwhere(seg == label)[:10_000] for label in range(1, labels)}
        options: dict[str, tuple[int, ...]] = {}
        for key, array in (("", data), ("_seg", seg)):
            block, chunk = comp_blosc2_params(array.shape, patch, array.itemsize)
            options |= {f"blocks{key}": block, f"chunks{key}": chunk}
        nnUNetDatasetBlosc2.save_case(
            data, seg, {"class_locations": places}, str(folder / name), **options
        )
    return nnUNetDatasetBlosc2(str(folder), names)


def make_trainer(plan: Plan, name: str) -> Any:
    """Return a trainer of a plan with everything that its loader needs, but without its network."""
    plans = {**plan.plans, "continue_training": False}
    channels = len(plan.dataset["channel_names"])
    plans["configurations"] = {
        CONFIGURATION: {
            **plan.plans["configurations"][CONFIGURATION],
            "use_mask_for_norm": [False] * channels,
            "batch_dice": False,
            "data_identifier": "made_up",
        }
    }
    trainer = nnunet_setup.find_trainer(name)(
        plans=plans,
        configuration=CONFIGURATION,
        fold=0,
        dataset_json=plan.dataset,
        device=torch.device("cpu"),
    )
    trainer._set_batch_size_and_oversample()
    return trainer


class Loading:
    """The batches of one stage of a trainer, made sequentially in this process."""

    def __init__(self, trainer: Any, dataset: nnUNetDatasetBlosc2, stage: int) -> None:
        """Prepare the loader; make the first batch, since it has set-up costs."""
        plan = trainer._loading_plans()[0][stage]
        self._loader = ScheduledDataLoader(
            dataset,
            trainer.label_manager,
            [plan],
            Schedule((plan.stage,), 1000, 250),
            seed=(1, 0, 0),
            first_batch=0,
            workers=0,
            oversample_foreground_percent=trainer._oversampling(validating=False),
            probabilistic_oversampling=trainer.probabilistic_oversampling,
        )
        next(self._loader)

    def seconds(self) -> float:
        """Make a batch and return its processor time."""
        began = time.process_time()
        next(self._loader)
        return time.process_time() - began


def some_stages(count: int, most: int) -> list[int]:
    """Return at most `most` stages below the last one (the planned patch), evenly spaced."""
    below = np.arange(count - 1)
    return sorted({int(n) for n in np.linspace(0, len(below) - 1, min(most, len(below))).round()})


def bench_plan(task: str, plan: Plan, folder: Path, seconds: float, stages: int) -> list[Row]:
    """Return one row per arm and measured stage of a plan.

    Batches of the stage and of `constant` alternate until they have taken `seconds` in total.
    """
    dataset = write_cases(plan, folder)
    constant = make_trainer(plan, CONSTANT)
    reference, rows = Loading(constant, dataset, 0), []
    planned = constant.stages[0]
    references: list[float] = []
    for arm, name in ARMS.items():
        trainer = make_trainer(plan, name)
        for number in some_stages(len(trainer.stages), stages):
            stage = trainer.stages[number]
            loading = Loading(trainer, dataset, number)
            turns: list[tuple[float, float]] = []
            while len(turns) < FEWEST or sum(map(sum, turns)) < seconds:
                turns.append((loading.seconds(), reference.seconds()))
            own, other = zip(*turns, strict=True)
            references += other
            row = {"task": task, "arm": arm, "patch_size": stage.label}
            row |= {"batch_size": stage.batch_size, "voxels": stage.voxels / planned.voxels}
            row |= {"channels": len(plan.dataset["channel_names"])}
            rows.append(row | {"seconds": mean(own)})
    # Mean of all turns: with a batch size of two, augmentation varies strongly between batches.
    return [row | {"constant_seconds": mean(references)} for row in rows]


def with_goals(rows: Sequence[Row]) -> pd.DataFrame:
    """Return the rows with the ratio to `constant`, its goal, and whether it is met."""
    table = pd.DataFrame(rows)
    table["ratio"] = table["seconds"] / table["constant_seconds"]
    table["goal"] = np.where(table["voxels"] <= FEW, GOAL_OF_FEW, GOAL)
    return table.assign(met=table["ratio"] <= table["goal"])


def to_markdown(table: pd.DataFrame) -> str:
    """Return a page with the largest ratio of each task and arm."""
    cells = table.assign(
        cell=[
            f"{row.ratio:.2f} at {row.batch_size} × {row.patch_size}{'' if row.met else ' (!)'}"
            for row in table.itertuples()
        ]
    )
    worst = cells.loc[cells.groupby(["task", "arm"], sort=False)["ratio"].idxmax()]
    wide = worst.pivot(index="task", columns="arm", values="cell")[list(ARMS)].reset_index()
    return (
        "Processor time of loading a batch, relative to `constant`: the largest ratio of the "
        "measured stages of each arm, alternating with `constant`. "
        f"Goals: {GOAL:g}, or {GOAL_OF_FEW:g} if a batch has at most {FEW:g} of the voxels; "
        f"met at {int(table['met'].sum())} of {len(table)} stages, (!) marks the others.\n\n"
        f"{pipe_table(wide)}\n"
    )


if __name__ == "__main__":
    redirect(snakemake.log[0])
    torch.set_num_threads(1)
    params, rows = snakemake.params, []
    for task, plan in published_plans(Path(snakemake.input.plans)).items():
        announce(f"bench: loading of {task}")
        with tempfile.TemporaryDirectory(dir=Path(snakemake.output.table).parent) as folder:
            nnunet_setup.configure(1, 0, Path(folder, "results"))
            rows += bench_plan(task, plan, Path(folder), params.seconds, params.stages)
    table = with_goals(rows)
    table.to_csv(snakemake.output.table, index=False)
    Path(snakemake.output.page).write_text(to_markdown(table), encoding="utf-8")
