"""Bake a scale-space network for one scale factor: an ordinary nnU-Net model folder.

The weights are made once and written as those of a plain network, so that stock nnU-Net predicts at
the cost of a network that was trained for that scale factor alone. The folder holds the code that
stock nnU-Net needs besides (`trainers/`, to be named in `nnUNet_extTrainer`).
"""

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from log import UserError, redirect, tell
from nnunet import write_json

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
        parameters: of the arm.
        scale: scale factor, above 0 and at most 1.
        model: folder to write: plans.json, dataset.json, baked.json, trainers/, and a
            fold_{fold}/checkpoint_final.pth each.
        weights_scale: scale factor that the weights are made for, if not that of the network.

    Raises UserError for a scale factor that cannot be, or a checkpoint that is missing.
    """
    import torch

    from trainers.curricula import rescaled_unet

    weights_scale = scale if weights_scale is None else weights_scale
    for wanted in (scale, weights_scale):
        if not 0 < wanted <= 1:
            raise UserError(f"scale_factor is {wanted}: it must be above 0 and at most 1")
    baked: dict[str, Any] = {"scale_factor": scale, "relative_distance": {}}
    for fold, folder in folds.items():
        path = folder / "checkpoint_final.pth"
        if not path.is_file():
            raise UserError(f"{path} is missing: train this fold before it is baked")
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
        init = checkpoint["init_args"]
        network = rebuild(checkpoint, parameters)
        baked["relative_distance"][str(fold)] = relative_distance(network, weights_scale)
        target = model / f"fold_{fold}" / "checkpoint_final.pth"
        target.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "network_weights": network.baked_state(weights_scale),
            "trainer_name": rescaled_unet.nnUNetTrainerRescaledUNet.__name__,
            "init_args": {key: init[key] for key in ("configuration", "fold")},
            "inference_allowed_mirroring_axes": checkpoint["inference_allowed_mirroring_axes"],
            "current_epoch": checkpoint["current_epoch"],
        }
        partial = target.with_suffix(".partial")
        torch.save(content, partial)
        partial.replace(target)
        plans = rescaled_plans(init["plans"], init["configuration"], scale)
        write_json(plans, model / "plans.json")
        write_json(init["dataset_json"], model / "dataset.json")
    (model / "trainers").mkdir(exist_ok=True)
    source = Path(str(rescaled_unet.__file__))
    shutil.copyfile(source, model / "trainers" / source.name)
    write_json(baked, model / "baked.json")


def rebuild(checkpoint: Mapping[str, Any], parameters: Mapping[str, Any]) -> Any:
    """Return the hypernetwork of a training's checkpoint (nnU-Net's dictionary)."""
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from trainers.curricula.scale_space import build_scale_space
    from trainers.curricula.scales import NETWORK_ATTRIBUTES, SCALE_ATTRIBUTES

    init = checkpoint["init_args"]
    manager = PlansManager(init["plans"])
    configuration = manager.get_configuration(init["configuration"])
    names = (*SCALE_ATTRIBUTES, *NETWORK_ATTRIBUTES)
    network = build_scale_space(
        manager,
        configuration,
        determine_num_input_channels(manager, configuration, init["dataset_json"]),
        manager.get_label_manager(init["dataset_json"]).num_segmentation_heads,
        False,
        **{name: value for name, value in parameters.items() if name in names},
    )
    network.load_state_dict(checkpoint["network_weights"])
    return network


def relative_distance(network: Any, scale: float) -> float:
    """Return |W(scale) - W(final)| / |W(final)|: 0 if the weights do not follow the scale factor.

    `final` is the scale factor of the training's own final validation, the largest one.
    """
    import torch

    with torch.no_grad():
        made, final = network.weights(scale), network.weights(network.scale_factor)
        distance = sum(float((made[n] - final[n]).square().sum()) for n in final) ** 0.5
        return distance / sum(float(final[n].square().sum()) for n in final) ** 0.5


def rescaled_plans(plans: Mapping[str, Any], configuration: str, scale: float) -> dict[str, Any]:
    """Return nnU-Net's plans with the rescaled network in the place of the planned one."""
    changed = copy.deepcopy(dict(plans))
    architecture = changed["configurations"][configuration].get("architecture")
    if architecture is None:
        raise UserError(f"the plans' {configuration} has no architecture of its own to rescale")
    architecture["network_class_name"] = NETWORK_CLASS
    architecture["arch_kwargs"]["scale_factor"] = scale
    return changed


if __name__ == "__main__":
    redirect(snakemake.log[0])
    import nnunet

    nnunet.configure(processes=1)
    from results import read_json
    from scale_study import CHOSEN
    from scale_tables import read_choice

    wanted = snakemake.wildcards.scale
    if wanted == CHOSEN:
        wanted = read_choice(
            Path(snakemake.input.choice), snakemake.params.task, snakemake.wildcards.arm
        )
    records = [read_json(Path(path)) for path in snakemake.input.runs]
    model = Path(snakemake.output.plans).parent
    bake_model(
        folds={int(record["fold"]): Path(record["results_folder"]) for record in records},
        parameters=snakemake.params.parameters,
        scale=float(wanted),
        model=model,
    )
    folds = " ".join(str(record["fold"]) for record in records)
    tell(
        f"To predict with it: nnUNet_extTrainer={model}/trainers "
        f"nnUNetv2_predict_from_modelfolder -m {model} -f {folds} -i images -o predictions"
    )
