"""Measure the foreground in patches of each curriculum size, as sampled by nnU-Net.

The paper argues for small patches with class balance: the smaller a forced-foreground patch, the
larger its share of foreground. Here this share is measured on the preprocessed data with nnU-Net's
`nnUNetDataLoader`, without augmentation. Low-frequency curricula do not change the shares, but may
lose a label that is too thin for the reduced resolution. This is measured as well.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from workflow_scripts.common.console import redirect
from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import read_json
from workflow_scripts.common.nnunet_setup import configure
from workflow_scripts.records.run_reader import name_labels
from workflow_scripts.trainers.curricula.batches.lowpass import reduce_labels
from workflow_scripts.trainers.curricula.schedules.frequency_stages import plan_bands
from workflow_scripts.trainers.curricula.schedules.patch_plan import PatchPlan
from workflow_scripts.trainers.curricula.schedules.schedule import Stage, plan_stages
from workflow_scripts.trainers.curricula.schedules.settings import CurriculumSettings

COLUMNS = [
    "task",
    "patch_size",
    "patch_voxels",
    "forced",
    "oversample",
    "label",
    "label_name",
    "foreground_share",
    "foreground_share_sem",
    "patches_with_label",
    "samples",
    "field_of_view",
]


def label_shares(patches: np.ndarray, labels: Sequence[int | tuple[int, ...]]) -> np.ndarray:
    """Return the share of voxels by patch and label, with shape (patches, 1 + labels).

    The first column is the share of any label. `patches` has the shape (patches, *spatial); voxels
    outside the image (-1) count as patch. A region is given as the tuple of its values.
    """
    flat = patches.reshape(len(patches), -1).astype(np.int64)
    columns = [np.unique(np.hstack(labels)), *map(np.atleast_1d, labels)]
    # Values from -1 on; counting them once is much faster than looking for each label.
    bins = max(flat.max(), *(values.max() for values in columns)) + 2
    counts = np.stack([np.bincount(patch + 1, minlength=bins) for patch in flat])
    shares = [counts[:, values + 1].sum(axis=1) / flat.shape[1] for values in columns]
    return np.stack(shares, axis=1)


def foreground(label_manager: Any) -> list[int | tuple[int, ...]]:
    """Return the foreground regions of a dataset, or its foreground labels if it has no regions."""
    manager = label_manager
    return list(manager.foreground_regions if manager.has_regions else manager.foreground_labels)


def summarise(shares: np.ndarray) -> pd.DataFrame:
    """Return mean, standard error, share of patches above 0, and samples per column of `shares`."""
    samples = len(shares)
    return pd.DataFrame(
        {
            "foreground_share": shares.mean(axis=0),
            "foreground_share_sem": shares.std(axis=0, ddof=1) / np.sqrt(samples),
            "patches_with_label": (shares > 0).mean(axis=0),
            "samples": samples,
        }
    )


def sample_shares(
    dataset: Any, label_manager: Any, stages: Sequence[Stage], oversample: float, samples: int
) -> list[np.ndarray]:
    """Draw at least `samples` patches and return their `label_shares` at each of `stages`.

    The stages load patches of the same size in batches of the same size, so they share the draws;
    a stage that reduces its field of view reduces the labels as in training.
    Whole batches of the planned size are drawn, because nnU-Net forces foreground in a fixed part
    of each batch (at least one patch in a batch of two).
    """
    loader = nnUNetDataLoader(
        dataset,
        stages[0].batch_size,
        stages[0].loaded_size,
        stages[0].loaded_size,
        label_manager,
        oversample_foreground_percent=oversample,
    )
    shares: list[list[np.ndarray]] = [[] for _ in stages]
    for _ in range(-(-samples // stages[0].batch_size)):
        target = loader.generate_train_batch()["target"]
        for stage, of_stage in zip(stages, shares, strict=True):
            patches = reduce_labels(target, stage.patch_size)[:, 0].numpy()
            of_stage.append(label_shares(patches, foreground(label_manager)))
    return [np.concatenate(of_stage) for of_stage in shares]


def measure_task(
    task: str,
    plans_json: Path,
    dataset_json: Path,
    data: Path,
    configuration: str,
    oversample: float,
    samples: int,
    seed: int,
) -> pd.DataFrame:
    """Return the rows of class_balance.csv for one task (`COLUMNS`); label 0 is any foreground.

    `data` is the folder of preprocessed cases. Patches are drawn for each size of the progressive
    schedule, then for each reduced size of the low-frequency schedule (whose `field_of_view` is the
    planned patch), without forced foreground and with the given `oversample`.
    Raises UserError if `data` has no preprocessed case.
    """
    if not data.is_dir() or not any(data.glob("*.pkl")):
        raise UserError(f"{data} contains no preprocessed case; rerun preprocess_task of {task}")
    plans = PlansManager(str(plans_json))
    chosen = plans.get_configuration(configuration)
    labels = plans.get_label_manager(read_json(dataset_json))
    dataset = infer_dataset_class(str(data))(str(data))
    plan = PatchPlan.of(chosen)
    keys = list(map(str, foreground(labels)))
    names = name_labels(labels.label_dict, keys)
    bands = {stage.patch_size: stage for stage in plan_bands(plan, replay=False)}
    reduced = [stage for stage in bands.values() if stage.field_of_view is not None]
    stages = [*plan_stages(plan, CurriculumSettings("progressive")), *reduced]
    alike: dict[tuple, list[Stage]] = {}
    for stage in stages:
        alike.setdefault((stage.batch_size, stage.loaded_size), []).append(stage)
    shares: dict[tuple[Stage, float], np.ndarray] = {}
    for same, percent in product(alike.values(), (0.0, oversample)):
        np.random.seed(seed)  # nnU-Net's loader draws from numpy's global generator
        sampled = sample_shares(dataset, labels, same, percent, samples)
        shares |= {(stage, percent): values for stage, values in zip(same, sampled, strict=True)}
        print(f"{task}: measured {len(same)} sizes of {same[0].loaded_size}", flush=True)
    tables = []
    for stage, percent in product(stages, (0.0, oversample)):
        columns = {
            "task": task,
            "patch_size": stage.label,
            "field_of_view": "x".join(map(str, stage.loaded_size)),
            "patch_voxels": int(np.prod(stage.patch_size)),
            "forced": percent > 0,
            "oversample": percent,
            "label": ["0", *keys],
            "label_name": ["any label", *(names[key] for key in keys)],
        }
        tables.append(summarise(shares[stage, percent]).assign(**columns))
    return pd.concat(tables, ignore_index=True)[COLUMNS]


if __name__ == "__main__":
    redirect(snakemake.log[0])

    configure(processes=1)
    params = snakemake.params
    measured = [
        measure_task(
            task,
            Path(plans),
            Path(dataset),
            Path(manifest).parent / params.data_identifier,
            configuration=params.configuration,
            oversample=params.oversample,
            samples=params.samples,
            seed=params.seed,
        )
        for task, plans, dataset, manifest in zip(
            params.tasks,
            snakemake.input.plans,
            snakemake.input.datasets,
            snakemake.input.manifests,
            strict=True,
        )
    ]
    pd.concat(measured).to_csv(snakemake.output.table, index=False)
