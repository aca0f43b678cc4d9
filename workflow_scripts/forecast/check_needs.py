"""Check plans, case names and disk space before the first training of a study."""

import math
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynamic_network_architectures.architectures.primus import Primus

from workflow_scripts.common import nnunet_setup
from workflow_scripts.common.console import redirect
from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import read_json, write_json
from workflow_scripts.common.formatting import DISK, counted, in_unit
from workflow_scripts.common.images import check_name
from workflow_scripts.common.nnunet_setup import PREPROCESSED, find_trainer
from workflow_scripts.forecast.gpu_memory import (
    STATES,
    GpuMemory,
    check_memory,
    estimate_memory,
    smallest_gpu,
)
from workflow_scripts.forecast.planned_study import CheckedStudy
from workflow_scripts.forecast.plans import Plan, published_plans
from workflow_scripts.forecast.workload import StudyDesign, build_network, fit_arm, median_shape
from workflow_scripts.study.specification import Arm

CHECKPOINTS = 2
"""Checkpoints that nnU-Net keeps per training: the best one and the final one."""


def check_plans(
    plans: Mapping[str, Plan], arms: Mapping[str, Arm], design: StudyDesign
) -> tuple[dict[tuple[str, str], int], dict[tuple[str, str], GpuMemory], list[str]]:
    """Check that every arm fits every plan.

    Returns the size of a checkpoint in bytes and the GPU memory, both by task and arm, and the
    faults. A checkpoint contains the network's weights and the optimiser's states, 4 bytes each.
    """
    sizes, memory, faults = {}, {}, []
    for task, plan in plans.items():
        for name, arm in arms.items():
            trained = replace(design, training=replace(design.training, **arm.own_length))
            try:
                trainer: Any = find_trainer(arm.trainer)
                _, _, settings = fit_arm(plan, trainer, arm.parameters, trained)
                memory[task, name] = estimate_memory(plan, trainer, arm.parameters, trained)
            except UserError as error:
                faults.append(f"arm {name}: {error}")
                continue
            build = trainer.build_network_architecture
            network, _ = build_network(
                plan.plans, plan.dataset, design.configuration, build, settings
            )
            weights = sum(weight.numel() for weight in network.parameters())
            own = "primus" if isinstance(network, Primus) else "sgd"
            states = STATES[arm.parameters.get("optimizer_name", own)]
            sizes[task, name] = 4 * weights * (1 + states)
    return sizes, memory, faults


def preprocessed_bytes(plan: Plan, configuration: str) -> float:
    """Estimate the size of a task's preprocessed data: float32 images, 8-bit labels, uncompressed.

    All cases are assumed to have the median size; docs/how-to/storage.md compares this with a
    measurement.
    """
    voxels = math.prod(median_shape(plan.plans, configuration))
    channels = len(plan.dataset.get("channel_names", plan.dataset.get("modality", {})))
    return float(plan.dataset["numTraining"]) * voxels * (4 * channels + 1)


def check_disk(wanted: Mapping[str, tuple[float, Path]]) -> list[str]:
    """Return a fault for each disk with too little space for the data still to be written.

    Args:
        wanted: description -> size in bytes, and folder (which may not exist yet).
    """
    disks: dict[int, list[str]] = defaultdict(list)
    folders = {what: _existing(folder) for what, (_, folder) in wanted.items()}
    for what, folder in folders.items():
        disks[folder.stat().st_dev].append(what)
    faults = []
    for parts in disks.values():
        folder = folders[parts[0]]
        total, free = sum(wanted[what][0] for what in parts), shutil.disk_usage(folder).free
        if total > free:
            terms = " + ".join(f"{in_unit(wanted[what][0], DISK)} for {what}" for what in parts)
            faults.append(
                f"the disk with {folder.absolute()} has {in_unit(free, DISK)} free, but the study "
                f"needs about {in_unit(total, DISK)}: {terms} (docs/how-to/storage.md)"
            )
    return faults


def _existing(folder: Path) -> Path:
    """Return the folder, or its nearest existing parent."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def check_names(splits: Mapping[str, Path]) -> list[str]:
    """Return the faults of case names, for tasks with a file of folds."""
    faults = []
    for task, path in splits.items():
        folds = read_json(path, kind=list) if path.is_file() else []
        cases = {case for fold in folds for part in ("train", "val") for case in fold[part]}
        faults += [f"{task}, case {case}: {fault}" for case in cases if (fault := check_name(case))]
    return sorted(faults)


def refuse(study: str, faults: Iterable[str]) -> None:
    """Raise UserError with all faults, if any."""
    if listed := list(dict.fromkeys(faults)):
        lines = "".join(f"\n  {fault}" for fault in listed)
        raise UserError(
            f"the study {study} cannot be trained as configured, "
            f"{counted(len(listed), 'fault')}:{lines}"
        )


def check_needs(
    study: CheckedStudy,
    published: Mapping[str, Plan],
    results: Path,
    gpu_gb: float | None = None,
) -> dict[str, Any]:
    """Check a study; return the bytes that it still has to write, and its largest GPU memory.

    Args:
        study: what is planned.
        published: published plans, by task.
        results: results folder of the study.
        gpu_gb: memory of the smallest GPU, in GB; None if there is none, or it is not known here.

    Raises UserError with all faults.
    """
    plans: dict[str, Plan] = {}
    faults: list[str] = []
    for task in study.tasks:
        try:
            plan = study.find_plan(task, published)
        except UserError as error:
            faults.append(str(error))
        else:
            plans |= {} if plan is None else {task: plan}
    sizes, memory, misfits = check_plans(plans, study.trained_arms(), study.design)
    faults += misfits + check_memory(memory, gpu_gb)
    left = [
        sizes[task, arm]
        for task, arm, record in study.records
        if (task, arm) in sizes and not Path(record).is_file()
    ]
    unprepared = [task for task, path in study.manifests.items() if not Path(path).is_file()]
    data = sum(
        preprocessed_bytes(plans[task], study.configuration) for task in unprepared if task in plans
    )
    checkpoints = CHECKPOINTS * sum(left)
    wanted = {
        f"the preprocessed data of {counted(len(unprepared), 'task')}": (data, PREPROCESSED),
        f"the checkpoints of {counted(len(left), 'training')}": (checkpoints, results),
    }
    faults += check_disk(wanted)
    faults += check_names({task: Path(path) for task, path in study.splits.items()})
    refuse(study.study, faults)
    known = [need.total for need in memory.values() if not math.isnan(need.total)]
    largest = max(known, default=None)
    return {
        "preprocessed_bytes": data,
        "checkpoint_bytes": checkpoints,
        "gpu_memory_gb": largest,
    }


if __name__ == "__main__":
    redirect(snakemake.log[0])

    nnunet_setup.configure(processes=1)
    needs = Path(snakemake.output.needs)
    study = CheckedStudy(**dict(snakemake.params.items()))
    listed, gpu_gb = published_plans(Path(snakemake.input.plans)), smallest_gpu(study.device)
    found = check_needs(study, listed, results=needs.parents[1], gpu_gb=gpu_gb)
    write_json(found, needs)
