"""nnU-Net's plans of a task, as planned here or as published, with the study's overrides."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workflow_scripts.common.files import read_json
from workflow_scripts.common.nnunet_setup import FOLDS, SPLITS
from workflow_scripts.planning.plan_overrides import override_plans


@dataclass(frozen=True)
class Plan:
    """nnU-Net's plans of a task and its `dataset.json`; `source` names the origin of the plans.

    `validated` lists the number of validation cases of each fold, once the folds are written.
    """

    source: str
    plans: dict[str, Any]
    dataset: dict[str, Any]
    validated: list[int] | None = None

    def validation_cases(self, fold: int) -> int:
        """Return the number of validation cases of a fold, by default as nnU-Net splits them."""
        if self.validated is not None and fold < len(self.validated):
            return self.validated[fold]
        return cases_of_fold(self.dataset["numTraining"], fold)


def published_plans(table: Path) -> dict[str, Plan]:
    """Return the plans of config/published/nnunet_plans.tsv by task, in nnU-Net's format.

    The table contains the values that differ between tasks. All other values are the same for every
    plain U-Net of nnU-Net 2.8.1's `ExperimentPlanner`.
    """
    with table.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return {row["task"]: _published_plan(row) for row in rows}


def _published_plan(row: Mapping[str, str]) -> Plan:
    """Return the plan of a row of the table; its values are JSON."""
    values = {key: json.loads(row[key]) for key in row if key not in ("task", "dataset")}
    configuration = {
        "patch_size": values["patch_size"],
        "batch_size": values["batch_size"],
        "median_image_size_in_voxels": values["median_shape"],
        "spacing": values["spacing"],
        "architecture": _plain_unet(values["anisotropic_kernels"], values["features_per_stage"]),
    }
    plans = {
        "dataset_name": row["dataset"],
        "plans_name": "nnUNetPlans",
        "label_manager": "LabelManager",
        "configurations": {"3d_fullres": configuration},
    }
    dataset = {
        "channel_names": {str(n): str(n) for n in range(values["n_input_channels"])},
        "labels": {"background": 0, **{str(n): n for n in range(1, values["n_classes"])}},
        "numTraining": values["n_training_cases"],
    }
    return Plan("published", plans, dataset)


def _plain_unet(layers: Mapping[str, Any], features: Sequence[int]) -> dict[str, Any]:
    """Return the architecture of a plain U-Net in nnU-Net's format.

    Args:
        layers: `kernel_sizes` and `strides` of every stage.
        features: channels of every stage.
    """
    depth = len(features)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": depth,
            "features_per_stage": features,
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": layers["kernel_sizes"],
            "strides": layers["strides"],
            "n_conv_per_stage": [2] * depth,
            "n_conv_per_stage_decoder": [2] * (depth - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def read_plan(path: Path) -> Plan:
    """Read nnU-Net's own plans, with the `dataset.json` and the folds next to them."""
    splits, validated = path.with_name(SPLITS), None
    if splits.is_file():
        validated = [len(fold["val"]) for fold in read_json(splits, kind=list)]
    dataset = read_json(path.parent / "dataset.json")
    return Plan("planned here", read_json(path), dataset, validated)


def find_plan(
    own: Path, published: Plan | None, configuration: str, overrides: dict[str, Any]
) -> Plan | None:
    """Return the plan of a task with the study's overrides, or None if it is not planned yet.

    Args:
        own: path of nnU-Net's own plans, which take precedence if the file exists.
        published: the published plan, if the study would get the same one.
        configuration: nnU-Net configuration, such as `3d_fullres`.
        overrides: changes that the study makes to the plan.

    Raises UserError if the overrides do not fit the plan.
    """
    plan = read_plan(own) if own.is_file() else published
    if plan is None:
        return None
    return replace(plan, plans=override_plans(plan.plans, "forecast", configuration, overrides))


def cases_of_fold(cases: int, fold: int) -> int:
    """Return the number of validation cases of a fold; nnU-Net's first folds get the remainder."""
    return cases // FOLDS + (fold < cases % FOLDS)
