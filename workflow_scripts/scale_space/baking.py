"""Bake a scale-space network for one scale factor into an ordinary nnU-Net model folder.

The weights are generated once and written as those of a plain network. Stock nnU-Net then predicts
at the cost of a network trained for that scale factor alone. The folder also contains the code that
stock nnU-Net needs (`trainers/`, to be set as `nnUNet_extTrainer`).
"""

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import replacing, write_json
from workflow_scripts.trainers.curricula.networks import rescaled_unet
from workflow_scripts.trainers.curricula.scale_space import (
    build_scale_space,
    nnUNetTrainerScaleSpace,
)
from workflow_scripts.trainers.curricula.standalone.model_export import plain_checkpoint

NETWORK_CLASS = "rescaled_unet.RescaledUNet"


def bake_model(
    folds: Mapping[int, Path],
    parameters: Mapping[str, Any],
    scale: float,
    model: Path,
    weights_scale: float | None = None,
) -> None:
    """Write the model folder of one arm and task.

    Args:
        folds: nnU-Net's fold folders of the finished trainings, by fold.
        parameters: parameters of the arm.
        scale: scale factor, above 0 and at most 1.
        model: folder to write: plans.json, dataset.json, baked.json, trainers/, and
            fold_{fold}/checkpoint_final.pth for each fold.
        weights_scale: scale factor for which weights are generated, if not that of the network.

    Raises UserError for an invalid scale factor or a missing checkpoint.
    """
    weights_scale = scale if weights_scale is None else weights_scale
    for wanted in (scale, weights_scale):
        if not 0 < wanted <= 1:
            raise UserError(f"scale_factor is {wanted}: it must be above 0 and at most 1")
    baked: dict[str, Any] = {"scale_factor": scale, "change_by_scale": {}}
    for fold, folder in folds.items():
        path = folder / "checkpoint_final.pth"
        if not path.is_file():
            raise UserError(f"{path} is missing: train this fold before it is baked")
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
        init = checkpoint["init_args"]
        network = rebuild(checkpoint, parameters)
        if untrained := rebuild_untrained(checkpoint, parameters):
            change = change_by_scale(network, untrained, weights_scale)
            baked["change_by_scale"][str(fold)] = change
        target = model / f"fold_{fold}" / "checkpoint_final.pth"
        content = plain_checkpoint(
            checkpoint,
            network.baked_state(weights_scale),
            rescaled_unet.nnUNetTrainerRescaledUNet.__name__,
        )
        with replacing(target) as partial:
            torch.save(content, partial)
        plans = rescaled_plans(init["plans"], init["configuration"], scale)
        write_json(plans, model / "plans.json")
        write_json(init["dataset_json"], model / "dataset.json")
    (model / "trainers").mkdir(exist_ok=True)
    source = Path(str(rescaled_unet.__file__))
    shutil.copyfile(source, model / "trainers" / source.name)
    write_json(baked, model / "baked.json")


def rebuild(checkpoint: Mapping[str, Any], parameters: Mapping[str, Any]) -> Any:
    """Return the hypernetwork from a training's checkpoint (nnU-Net's dictionary)."""
    network = _build(checkpoint, parameters)
    network.load_state_dict(checkpoint["network_weights"])
    return network


def rebuild_untrained(checkpoint: Mapping[str, Any], parameters: Mapping[str, Any]) -> Any | None:
    """Return the hypernetwork with the weights at the start of a checkpoint's training.

    They follow from the seed. Return None if the checkpoint does not contain it.
    """
    seed = checkpoint["init_args"].get("identity", {}).get("seed")
    if seed is None:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _build(checkpoint, parameters)


def _build(checkpoint: Mapping[str, Any], parameters: Mapping[str, Any]) -> Any:
    init = checkpoint["init_args"]
    manager = PlansManager(init["plans"])
    configuration = manager.get_configuration(init["configuration"])
    return build_scale_space(
        manager,
        configuration,
        determine_num_input_channels(manager, configuration, init["dataset_json"]),
        manager.get_label_manager(init["dataset_json"]).num_segmentation_heads,
        False,
        settings=nnUNetTrainerScaleSpace.network_settings(parameters),
    )


def change_by_scale(trained: Any, untrained: Any, scale: float) -> float:
    """Return how much the weights' change in training depends on the scale factor.

    The result is |D(scale) - D(final)| / |D(final)|, where D(phi) are the trained weights of a
    scale factor minus the initial ones, and `final` is the scale factor of the final validation,
    the largest. It is 0 if training changed nothing, or the same at every scale factor. The weights
    themselves are not suitable: they differ between scale factors even without training.
    """
    with torch.no_grad():
        changes = []
        for phi in (scale, trained.scale_factor):
            before, after = untrained.weights(phi), trained.weights(phi)
            changes.append(torch.cat([(after[n] - before[n]).flatten() for n in before]).double())
        length = float(changes[1].norm())
        return float((changes[0] - changes[1]).norm()) / length if length else 0.0


def rescaled_plans(plans: Mapping[str, Any], configuration: str, scale: float) -> dict[str, Any]:
    """Return nnU-Net's plans with the rescaled network instead of the planned one."""
    changed = copy.deepcopy(dict(plans))
    architecture = changed["configurations"][configuration].get("architecture")
    if architecture is None:
        raise UserError(f"{configuration} in the plans has no architecture to rescale")
    architecture["network_class_name"] = NETWORK_CLASS
    architecture["arch_kwargs"]["scale_factor"] = scale
    return changed
