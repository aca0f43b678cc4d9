"""Derive plans with a new name from nnU-Net's, with the study's patch, batch or features."""

import copy
from typing import Any

from workflow_scripts.common.errors import UserError
from workflow_scripts.trainers.curricula.schedules.patch_plan import PatchPlan, count_poolings

PER_STAGE = (
    "features_per_stage",
    "kernel_sizes",
    "strides",
    "n_conv_per_stage",
    "n_blocks_per_stage",
)


PRIMUS = {
    "primus_s": {"embed_dim": 396, "eva_depth": 12, "eva_numheads": 6},
    "primus_b": {"embed_dim": 792, "eva_depth": 12, "eva_numheads": 12},
    "primus_m": {"embed_dim": 864, "eva_depth": 16, "eva_numheads": 12},
    "primus_l": {"embed_dim": 1056, "eva_depth": 24, "eva_numheads": 16},
}
"""Sizes of nnU-Net's transformer (`nnUNet_Primus_S_Trainer` and the others)."""


def why_planned(plans: dict[str, Any]) -> str:
    """Return what to do if nnU-Net planned only 2D networks, as the end of a message."""
    only_2d = list(plans["configurations"]) == ["2d"]
    return ", because its images are 2D: set planning.configuration: 2d" if only_2d else ""


def override_plans(
    plans: dict[str, Any], name: str, configuration: str, overrides: dict[str, Any]
) -> dict[str, Any]:
    """Return the plans under a new name with one configuration changed.

    The preprocessed data stay those of the original plans, because no override affects them. If
    there are fewer `features_per_stage` than planned, the deepest stages are removed.

    Args:
        plans: content of nnU-Net's plans file.
        name: name of the new plans.
        configuration: such as `3d_fullres`.
        overrides: any of `network` (a name in `PRIMUS`), `patch_size`, `batch_size`,
            `features_per_stage`.

    Raises:
        UserError: there is no such configuration, there are more stages than planned, the
            network cannot pool the patch size as often as it must, or it is a transformer in 2D or
            with features per stage.
    """
    if configuration not in plans["configurations"]:
        raise UserError(
            f"planning.configuration is {configuration}, but nnU-Net planned only "
            f"{', '.join(sorted(plans['configurations']))} for {plans['dataset_name']}"
            f"{why_planned(plans)}"
        )
    plans = copy.deepcopy(plans)
    plans["plans_name"] = name
    chosen = plans["configurations"][configuration]
    if network := overrides.get("network"):
        if configuration == "2d" or "features_per_stage" in overrides:
            raise UserError(
                f"planning.network: {network} is for 3D, and has no features_per_stage to override"
            )
        chosen["architecture"] = {
            "network_class_name": "dynamic_network_architectures.architectures.primus.Primus",
            # Its tokens are as large as what three poolings reduce to one voxel.
            "arch_kwargs": {**PRIMUS[network], "strides": [[1] * 3, *[[2] * 3] * 3]},
            "_kw_requires_import": [],
        }
    kwargs = chosen["architecture"]["arch_kwargs"]
    if features := overrides.get("features_per_stage"):
        planned = kwargs["n_stages"]
        if not 2 <= len(features) <= planned:
            raise UserError(
                f"planning.overrides: features_per_stage has {len(features)} entries, the plan "
                f"of {plans['dataset_name']} has {planned} stages: give 2 to {planned}"
            )
        for key in PER_STAGE:
            if key in kwargs:
                kwargs[key] = kwargs[key][: len(features)]
        kwargs["n_conv_per_stage_decoder"] = kwargs["n_conv_per_stage_decoder"][: len(features) - 1]
        kwargs["n_stages"], kwargs["features_per_stage"] = len(features), list(features)
    size = overrides.get("patch_size") or (chosen["patch_size"] if network else None)
    if size:
        if len(size) != len(chosen["patch_size"]):
            raise UserError(
                f"planning.overrides: patch_size {list(size)} has {len(size)} axes, but the "
                f"configuration {configuration} of {plans['dataset_name']} has "
                f"{len(chosen['patch_size'])}"
            )
        try:
            PatchPlan.from_strides(size, kwargs["strides"], chosen["batch_size"])
        except ValueError:
            units = [2**count for count in count_poolings(kwargs["strides"])]
            near = [max(unit, unit * round(n / unit)) for n, unit in zip(size, units, strict=True)]
            raise UserError(
                f"planning.overrides: patch_size {list(size)} must be multiples of {units} for the "
                f"plan of {plans['dataset_name']}; the nearest is {near}"
            ) from None
        chosen["patch_size"] = list(size)
    if batch := overrides.get("batch_size"):
        chosen["batch_size"] = batch
    return plans
