"""Measure how much foreground nnU-Net's own sampling puts in patches of each curriculum size.

The paper's argument for small patches is class balance: forced-foreground patches hold a larger
share of foreground the smaller they are. Here this is measured on the preprocessed data with
nnU-Net's `nnUNetDataLoader`, without augmentation. Low-frequency curricula leave the shares as they
are; what they can lose is a label too thin for the reduced resolution, which is measured as well.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from log import UserError
from trainers.curricula.bands import plan_bands
from trainers.curricula.schedules import Stage, count_poolings, plan_stages

COLUMNS = (
    "task patch_size patch_voxels forced oversample label label_name foreground_share "
    "foreground_share_sem patches_with_label samples field_of_view"
).split()


def label_shares(patches: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """Share of voxels by patch and label, shape (patches, 1 + labels); first column: any of them.

    `patches` has the shape (patches, z, y, x); voxels outside the image (-1) count as patch.
    """
    flat = patches.reshape(len(patches), -1)
    shares = np.stack([(flat == label).mean(axis=1) for label in labels], axis=1)
    return np.concatenate([shares.sum(axis=1, keepdims=True), shares], axis=1)


def summarise(shares: np.ndarray) -> pd.DataFrame:
    """One row a column of `shares`: mean, standard error, share of patches above 0, samples."""
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
    dataset: Any, label_manager: Any, stage: Stage, oversample: float, samples: int
) -> np.ndarray:
    """Draw at least `samples` patches of a stage and return `label_shares` of them.

    A stage that reduces its field of view has its labels reduced as in training.
    Whole batches of the planned size are drawn, since nnU-Net forces foreground in a fixed part
    of each batch (at least one patch of a batch of two).
    """
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

    from trainers.curricula.lowpass import reduce_labels

    loader = nnUNetDataLoader(
        dataset,
        stage.batch_size,
        stage.loaded_size,
        stage.loaded_size,
        label_manager,
        oversample_foreground_percent=oversample,
    )
    batches = [
        label_shares(
            reduce_labels(loader.generate_train_batch()["target"], stage.patch_size)[:, 0].numpy(),
            label_manager.foreground_labels,
        )
        for _ in range(-(-samples // stage.batch_size))
    ]
    return np.concatenate(batches)


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
    """Rows of class_balance.csv for one task: `COLUMNS`, label 0 meaning any foreground label.

    `data` is the folder of preprocessed cases; each size of the progressive schedule, then each
    reduced one of the low-frequency schedule (whose `field_of_view` is the planned patch), is drawn
    without forced foreground and with the given `oversample`. `UserError` if `data` is empty.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    if not data.is_dir() or not any(data.glob("*.pkl")):
        raise UserError(f"{data} holds no preprocessed case; rerun preprocess_task of {task}")
    plans = PlansManager(str(plans_json))
    chosen = plans.get_configuration(configuration)
    labels = plans.get_label_manager(json.loads(dataset_json.read_text()))
    dataset = infer_dataset_class(str(data))(str(data))
    poolings = count_poolings(chosen.network_arch_init_kwargs["strides"])
    names = {number: name for name, number in labels.label_dict.items()}
    label_column = [0, *labels.foreground_labels]
    tables = []
    plan = (chosen.patch_size, poolings, chosen.batch_size)
    bands = {stage.patch_size: stage for stage in plan_bands(*plan, replay=False)}
    reduced = [stage for stage in bands.values() if stage.field_of_view is not None]
    for stage in [*plan_stages(*plan, "progressive"), *reduced]:
        for percent in (0.0, oversample):
            np.random.seed(seed)  # nnU-Net's loader draws from numpy's global generator
            table = summarise(sample_shares(dataset, labels, stage, percent, samples))
            columns = {
                "task": task,
                "patch_size": stage.label,
                "field_of_view": "x".join(map(str, stage.loaded_size)),
                "patch_voxels": int(np.prod(stage.patch_size)),
                "forced": percent > 0,
                "oversample": percent,
                "label": label_column,
                "label_name": ["any label", *(names[label] for label in labels.foreground_labels)],
            }
            tables.append(table.assign(**columns))
        print(f"{task}: measured patches of {stage.label}", flush=True)
    return pd.concat(tables, ignore_index=True)[COLUMNS]


if __name__ == "__main__":
    from log import redirect

    redirect(snakemake.log[0])

    from nnunet import configure

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
