"""Write a trained model for nnU-Net alone: its checkpoints name nnU-Net's own trainer."""

import json
import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from nnunetv2.model_sharing.model_export import export_pretrained_model
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from ..networks.primus import is_primus

CHECKPOINT = "checkpoint_final.pth"
CARD = "card.md"
OF_MODEL = ("plans.json", "dataset.json", "dataset_fingerprint.json")
OF_FOLD = ("progress.png", "validation/summary.json")


def plain_checkpoint(
    checkpoint: Mapping[str, Any], weights: Mapping[str, torch.Tensor], trainer: str
) -> dict[str, Any]:
    """Return a checkpoint with what nnU-Net needs to predict, and nothing else.

    Args:
        checkpoint: nnU-Net's checkpoint of a training.
        weights: those of the network that nnU-Net builds.
        trainer: name of the class that builds it.
    """
    init = checkpoint["init_args"]
    return {
        "network_weights": weights,
        "trainer_name": trainer,
        "init_args": {key: init[key] for key in ("configuration", "fold")},
        "inference_allowed_mirroring_axes": checkpoint["inference_allowed_mirroring_axes"],
        "current_epoch": checkpoint["current_epoch"],
    }


def export_model(
    model: Path,
    out: Path,
    folds: Sequence[str] | None = None,
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Write a model's folder and its zip, which plain nnU-Net installs; return the zip.

    Predictions are the same as those of the original.

    Args:
        model: nnU-Net's folder `{dataset}/{trainer}__{plans}__{configuration}`.
        out: folder for `{dataset}/nnUNetTrainer__{plans}__{configuration}/` and its zip.
        folds: the exported ones; None is all that are finished.
        facts: further lines of the model's card, by what they state.

    Raises:
        ValueError: a folder that is no finished model, is exported already, or whose network is a
            transformer or not that of the plans, such as that of `scale_space`, which is baked
            instead.
    """
    model = model.resolve()
    finished = sorted(path.parent for path in model.glob(f"fold_*/{CHECKPOINT}"))
    sources = [path for path in finished if folds is None or path.name[len("fold_") :] in folds]
    if len(sources) < len(folds or "1") or model.name.count("__") != 2:
        raise ValueError(
            f"{model} is not nnU-Net's folder TRAINER__PLANS__CONFIGURATION of a finished training"
        )
    trainer, plans, configuration = model.name.split("__")
    target = out.resolve() / model.parent.name / "__".join(["nnUNetTrainer", plans, configuration])
    if (target / OF_MODEL[0]).exists():
        raise ValueError(f"{target} exists: remove it, or choose another folder")
    copied = [*OF_MODEL, *(f"{fold.name}/{name}" for fold in sources for name in OF_FOLD)]
    if missing := [name for name in copied if not (model / name).is_file()]:
        raise ValueError(f"{model} lacks {', '.join(missing)}: finish the training and validation")
    names = _plain_weights(model, configuration)
    for fold in sources:
        checkpoint = torch.load(fold / CHECKPOINT, map_location="cpu", weights_only=False)
        weights = checkpoint["network_weights"]
        if {name: value.shape for name, value in weights.items()} != names:
            raise ValueError(
                f"{model}: the network of {trainer} is not that of the plans, so nnU-Net alone "
                "cannot use it. A model of scale_space is baked for one scale factor instead"
            )
        (target / fold.name).mkdir(parents=True, exist_ok=True)
        content = plain_checkpoint(checkpoint, weights, nnUNetTrainer.__name__)
        torch.save(content, target / fold.name / CHECKPOINT)
    for name in copied:
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(model / name, target / name)
    known = {"Trainer": trainer, **_scores(sources)}
    (target / CARD).write_text(_card(target, known | dict(facts or {})), encoding="utf-8")
    exported = tuple(fold.name[len("fold_") :] for fold in sources)
    return _zip(target, plans, configuration, exported)


def _plain_weights(model: Path, configuration: str) -> dict[str, torch.Size]:
    """Return the shapes of the weights of the network that nnU-Net's trainer builds."""
    plans, dataset = (json.loads((model / name).read_text("utf-8")) for name in OF_MODEL[:2])
    manager = PlansManager(plans)
    planned = manager.get_configuration(configuration)
    if is_primus(planned):
        raise ValueError(
            f"{model}: nnU-Net's own trainer does not build a transformer from plans, so it cannot "
            "use this model alone. Predict with the trainers of this package (nnUNet_extTrainer)"
        )
    with torch.device("meta"):
        network = nnUNetTrainer.build_network_architecture(
            manager,
            planned,
            determine_num_input_channels(manager, planned, dataset),
            manager.get_label_manager(dataset).num_segmentation_heads,
            False,
        )
    return {name: value.shape for name, value in network.state_dict().items()}


def _scores(folds: list[Path]) -> dict[str, str]:
    """Return the mean foreground Dice of each fold's validation."""
    read = {
        fold.name.replace("_", " "): json.loads((fold / OF_FOLD[1]).read_text("utf-8"))
        for fold in folds
    }
    return {
        f"Dice, {name}": f"{summary['foreground_mean']['Dice']:.4f}"
        for name, summary in read.items()
    }


def _card(target: Path, facts: Mapping[str, str]) -> str:
    """Return the model's card in Markdown."""
    _, plans, configuration = target.name.split("__")
    lines = [f"| {key} | {value} |" for key, value in facts.items()]
    command = (
        f"nnUNetv2_predict -d {target.parent.name} -tr nnUNetTrainer -p {plans} -c {configuration}"
    )
    return "\n".join(
        [
            f"# {target.parent.name}, {configuration}",
            "",
            "A model for nnU-Net 2.8, which needs nothing else:",
            f"`nnUNetv2_install_pretrained_model_from_zip {_zip_of(target).name}`,",
            f"then `{command}`.",
            "Installing it replaces a model of nnU-Net's own trainer on the same plans.",
            "",
            *("| | |", "| --- | --- |", *lines, ""),
        ]
    )


def _zip_of(target: Path) -> Path:
    return target.with_name(f"{target.parent.name}__{target.name}.zip")


def _zip(target: Path, plans: str, configuration: str, folds: tuple[str, ...]) -> Path:
    """Let nnU-Net pack an exported model, and add its card."""
    packed, results = _zip_of(target), target.parents[1]
    given = os.environ.get("nnUNet_results")
    os.environ["nnUNet_results"] = str(results)
    try:
        export_pretrained_model(
            target.parent.name,
            str(packed),
            (configuration,),
            nnUNetTrainer.__name__,
            plans,
            folds,
        )
    finally:
        os.environ.pop("nnUNet_results")
        if given is not None:
            os.environ["nnUNet_results"] = given
    with zipfile.ZipFile(packed, "a") as archive:
        archive.write(target / CARD, (target / CARD).relative_to(results))
    return packed
