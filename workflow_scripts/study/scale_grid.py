"""Which scale factors of which arms a study bakes and evaluates: pure, the rules ask it."""

from collections.abc import Mapping
from typing import Any

from workflow_scripts.trainers.curricula.schedules.scale_factors import DEFAULT_RANK

TRAINER = "nnUNetTrainerScaleSpace"
BAKED_TRAINER = "nnUNetTrainerRescaledUNet"
"""Names a baked model's folder, as nnU-Net names folders after the trainer."""

PLANNED = "planned"
"""In the place of a scale factor: nnU-Net's own network."""

CHOSEN = "chosen"
"""In the place of a scale factor: the cheapest one that is good enough by the evaluation."""


def role_of(arm: Mapping[str, Any]) -> str:
    """Return what an arm is in a scale-space study, from its trainer and parameters.

    `hypernetwork` and its controls: `stochastic` (the same weights for all scale factors), `film`
    (these, with features scaled and shifted by the scale factor),
    `fixed_hyper` (a hypernetwork at one scale factor), `fixed` (an ordinary network for one); and
    `stock` for any other trainer.
    """
    if arm["trainer"] != TRAINER:
        return "stock"
    parameters = arm["parameters"]
    is_plain = parameters.get("rank", DEFAULT_RANK) == 0
    if parameters.get("film"):
        return "film"
    if parameters.get("scale_factor") is None:
        return "stochastic" if is_plain else "hypernetwork"
    return "fixed" if is_plain else "fixed_hyper"


def scale_label(scale: float) -> str:
    """Return a scale factor as it stands in paths: 0.35, 0.5."""
    return f"{scale:.4g}"


def scales_of(config: Mapping[str, Any], arm: str) -> list[str]:
    """Return the scale factors that an arm is evaluated at, as they stand in paths.

    Those of the section `scale_space` where it was trained for many; its own one of a control that
    was trained for one; `PLANNED` of the reference arm; none of any other.
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
    """Return (task, arm, fold, scale factor of the weights, of the network) of the transfer matrix.

    Every pair of the configured scale factors, for every hypernetwork of the study.
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
    """Return the file that stands for a baked model, none for nnU-Net's own network.

    Args:
        model: path of a baked model with names in braces.
        dataset, plans, scale, names: what stands for them.
    """
    if scale == PLANNED:
        return []
    return [f"{model}/plans.json".format(dataset=dataset, plans=plans, scale=scale, **names)]


def wanted_models(model: str, config: Mapping[str, Any], dataset: str, plans: str) -> list[str]:
    """Return what `snakemake bake` makes of a task: a model of every hypernetwork of the study.

    For the config's `scale_factor`, or the `CHOSEN` one.

    Raises ValueError where the study has no hypernetwork.
    """
    wanted = config["scale_factor"]
    scale = CHOSEN if wanted is None else scale_label(wanted)
    found = [name for name, arm in config["arms"].items() if role_of(arm) == "hypernetwork"]
    if not found:
        raise ValueError(
            f"no arm of this study is a scale-space hypernetwork (trainer {TRAINER} without a "
            "scale_factor and with a rank above 0): see config/scale_space.yaml"
        )
    return [path for arm in found for path in baked_plans(model, dataset, plans, scale, arm=arm)]
