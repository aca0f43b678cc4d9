"""Scale factors that a study bakes and evaluates, by arm: pure functions for the rules."""

from collections.abc import Mapping
from typing import Any

from workflow_scripts.trainers.curricula.schedules.scale_factors import ScaleSpaceSettings

TRAINER = "nnUNetTrainerScaleSpace"
BAKED_TRAINER = "nnUNetTrainerRescaledUNet"
"""Part of the folder name of a baked model, because nnU-Net names folders after the trainer."""

PLANNED = "planned"
"""Placeholder for a scale factor: nnU-Net's own network."""

CHOSEN = "chosen"
"""Placeholder for a scale factor: the cheapest one that is good enough in the evaluation."""


def role_of(arm: Mapping[str, Any]) -> str:
    """Return the role of an arm in a scale-space study, from its trainer and parameters.

    The roles are `hypernetwork` and its controls: `stochastic` (the same weights for all scale
    factors), `film` (the same weights, with features scaled and shifted by the scale factor),
    `fixed_hyper` (a hypernetwork at one scale factor) and `fixed` (an ordinary network for one
    scale factor). Any other trainer is `stock`.
    """
    if arm["trainer"] != TRAINER:
        return "stock"
    parameters = arm["parameters"]
    is_plain = parameters.get("rank", ScaleSpaceSettings.rank) == 0
    if parameters.get("film"):
        return "film"
    if parameters.get("scale_factor") is None:
        return "stochastic" if is_plain else "hypernetwork"
    return "fixed" if is_plain else "fixed_hyper"


def scale_label(scale: float) -> str:
    """Return a scale factor as written in paths: 0.35, 0.5."""
    return f"{scale:.4g}"


def scales_of(config: Mapping[str, Any], arm: str) -> list[str]:
    """Return the scale factors at which an arm is evaluated, as written in paths.

    An arm trained for many has those of the section `scale_space`. A control trained for one has
    that one. A `stock` arm has `PLANNED` if it is the reference arm, else none.
    """
    role = role_of(config["arms"][arm])
    if role == "stock":
        return [PLANNED] if arm == config["reference_arm"] else []
    if role in ("fixed", "fixed_hyper"):
        return [scale_label(config["arms"][arm]["parameters"]["scale_factor"])]
    return [scale_label(scale) for scale in config["scale_space"]["scales"]]


def evaluations(config: Mapping[str, Any]) -> list[tuple[str, str, int, str]]:
    """Return (task, arm, fold, scale factor) of every evaluation of the study."""
    return [
        (task, arm, fold, scale)
        for task in config["tasks"]
        for arm in config["arms"]
        for fold in config["folds"]
        for scale in scales_of(config, arm)
    ]


def transfers(config: Mapping[str, Any]) -> list[tuple[str, str, int, str, str]]:
    """Return (task, arm, fold, weights' scale, network's scale) of the transfer matrix.

    These are all pairs of the configured scale factors, for every hypernetwork of the study.
    """
    scales = [scale_label(scale) for scale in config["scale_space"]["transfer"]["scales"]]
    return [
        (task, arm, fold, weights, network)
        for task in config["tasks"]
        for arm, chosen in config["arms"].items()
        for fold in config["folds"]
        for weights in scales
        for network in scales
        if role_of(chosen) == "hypernetwork"
    ]


def baked_plans(model: str, dataset: str, plans: str, scale: str, **names: str) -> list[str]:
    """Return the file that represents a baked model; empty for nnU-Net's own network.

    Args:
        model: path of a baked model with placeholders in braces.
        dataset, plans, scale, names: values of the placeholders.
    """
    if scale == PLANNED:
        return []
    return [f"{model}/plans.json".format(dataset=dataset, plans=plans, scale=scale, **names)]


def wanted_models(model: str, config: Mapping[str, Any], dataset: str, plans: str) -> list[str]:
    """Return the outputs of `snakemake bake` for a task: one model per hypernetwork of the study.

    The models are for the config's `scale_factor`, or for the `CHOSEN` one.

    Raises ValueError if the study has no hypernetwork.
    """
    wanted = config["scale_factor"]
    scale = CHOSEN if wanted is None else scale_label(wanted)
    found = [name for name, arm in config["arms"].items() if role_of(arm) == "hypernetwork"]
    if not found:
        raise ValueError(
            f"no arm of this study is a scale-space hypernetwork (trainer {TRAINER} without a "
            "scale_factor and with a rank above 0): see config/studies/scale_space.yaml"
        )
    return [path for arm in found for path in baked_plans(model, dataset, plans, scale, arm=arm)]
