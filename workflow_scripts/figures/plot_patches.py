"""Figure: a patch as the network sees it during training, one row per schedule."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from workflow_scripts.common.arm_schedule import has_schedule, plan_arm
from workflow_scripts.common.console import redirect
from workflow_scripts.common.errors import UserError
from workflow_scripts.common.figure_style import Style, grid, load_style, save
from workflow_scripts.common.files import read_json
from workflow_scripts.common.nnunet_setup import configure, find_trainer
from workflow_scripts.study.settings import TrainingSettings
from workflow_scripts.trainers.curricula.batches.lowpass import reduce_image
from workflow_scripts.trainers.curricula.schedules.schedule import Schedule, Stage

MOMENTS = 10
"""Number of columns: a training is split into equal parts, each shown at its middle epoch."""


def stages_of(schedule: Schedule) -> list[Stage]:
    """Return the stage at each of the `MOMENTS` of a training."""
    epochs = [int((moment + 0.5) / MOMENTS * schedule.epochs) for moment in range(MOMENTS)]
    return [
        schedule.stages[schedule.stage_of_iteration(schedule.iterations_before(epoch))]
        for epoch in epochs
    ]


def central_patch(folder: Path, planned: tuple[int, ...]) -> np.ndarray:
    """Return a preprocessed patch around the foreground of the first case that has foreground.

    It is the first channel, padded as in nnU-Net, with the axes of `planned`: a 2D patch is from
    the slice of the median foreground voxel. Raises UserError if no case has foreground.
    """
    dataset = infer_dataset_class(str(folder))(str(folder))
    for case in sorted(dataset.identifiers):
        data, _, _, properties = dataset.load_case(case)
        places = [found for found in properties["class_locations"].values() if len(found)]
        if places:
            centre = np.median(np.concatenate(places), axis=0)[1:].astype(int)
            size = (*[1] * (len(centre) - len(planned)), *planned)
            box = [[c - n // 2, c - n // 2 + n] for c, n in zip(centre, size, strict=True)]
            return np.asarray(crop_and_pad_nd(data, box, 0)[0]).reshape(planned)
    raise UserError(
        f"{folder} contains no preprocessed case with foreground; rerun preprocess_task"
    )


def seen(patch: np.ndarray, stage: Stage, trainer: Any, parameters: Mapping) -> np.ndarray:
    """Return the planned patch as the network sees it at a stage, without augmentation."""
    if stage.field_of_view is not None:
        options = {
            "method": parameters.get("lowpass", trainer.lowpass),
            "half_voxel_shift": parameters.get("half_voxel_shift", trainer.half_voxel_shift),
        }
        whole = torch.from_numpy(patch)[None, None].float()
        return reduce_image(whole, stage.patch_size, **options)[0, 0].numpy()
    first = [(full - size) // 2 for full, size in zip(patch.shape, stage.patch_size, strict=True)]
    cut = [slice(n, n + size) for n, size in zip(first, stage.patch_size, strict=True)]
    return patch[tuple(cut)]


def draw(axis: Any, found: np.ndarray, stage: Stage, limits: tuple[float, float]) -> None:
    """Draw the middle slice at its place in the planned patch; unseen parts stay grey."""
    reach = [n / 2 for n in stage.loaded_size[-2:]]
    axis.imshow(
        found if found.ndim == 2 else found[found.shape[0] // 2],
        cmap="gray",
        vmin=limits[0],
        vmax=limits[1],
        extent=(-reach[1], reach[1], reach[0], -reach[0]),
    )
    strength = f"\naugm. {stage.augmentation:.2f}" if stage.augmentation < 1 else ""
    axis.set_xlabel(stage.label + strength, fontsize="small")


def plot_patches(
    patch: np.ndarray,
    arms: Mapping[str, tuple[Schedule, Any, Mapping]],
    task: str,
    style: Style,
    outputs: Iterable[Path],
) -> None:
    """Draw one row per schedule; arms that see the same patches share a row.

    Args:
        patch: patch of the planned size.
        arms: schedule, trainer class and parameters, by arm.
        task: task of the patch.
        style: style of the figure.
        outputs: files to write.
    """
    rows: dict[tuple, list[str]] = {}
    for arm in style.order(arms):
        schedule, trainer, parameters = arms[arm]
        sizes = [
            (stage.patch_size, stage.loaded_size, stage.augmentation)
            for stage in stages_of(schedule)
        ]
        options = [parameters.get(name) for name in ("lowpass", "half_voxel_shift")]
        rows.setdefault((*sizes, *options), []).append(arm)
    height = 2.2 * style.figure["width"] / MOMENTS / style.figure["panel_height"]
    figure, axes = grid(style, len(rows), MOMENTS, height=height)
    figure.set_figwidth(1.5 * style.figure["width"])
    limits = tuple(np.percentile(patch, (1, 99.5)))
    reach = [n / 2 for n in patch.shape[-2:]]
    for row, names in zip(axes, rows.values(), strict=True):
        schedule, trainer, parameters = arms[names[0]]
        for axis, stage in zip(row, stages_of(schedule), strict=True):
            draw(axis, seen(patch, stage, trainer, parameters), stage, limits)
            axis.set(xlim=(-reach[1], reach[1]), ylim=(reach[0], -reach[0]))
            axis.set(xticks=[], yticks=[], aspect="equal", facecolor="#D9D9D9")
            axis.grid(visible=False)
        row[0].set_ylabel("\n".join(style.arm(name)["label"] for name in names))
    for moment, axis in enumerate(axes[0]):
        axis.set_title(f"{100 * (moment + 0.5) / MOMENTS:.0f} %")
    name = style.task(task)
    figure.suptitle(f"A patch of {name} as the network sees it, by the share of the epochs")
    save(figure, style, outputs)


def plan_arms(
    plans: Path, configuration: str, arms: Mapping[str, Mapping[str, Any]]
) -> tuple[tuple[int, ...], dict[str, tuple[Schedule, Any, Mapping]]]:
    """Return the planned patch size, and the schedule, trainer and parameters of each arm.

    Arms without a schedule are left out. `arms` contains trainer, parameters and training of each.
    """
    content, planned = read_json(plans), {}
    for arm, settings in arms.items():
        trainer, parameters = find_trainer(settings["trainer"]), settings["parameters"]
        if has_schedule(trainer):
            length = TrainingSettings(**settings["training"]).length
            schedule = plan_arm(content, configuration, trainer, parameters, length)
            planned[arm] = (schedule, trainer, parameters)
    return tuple(content["configurations"][configuration]["patch_size"]), planned


if __name__ == "__main__":
    redirect(snakemake.log[0])

    configure(processes=1)
    params = snakemake.params
    size, planned = plan_arms(Path(snakemake.input.plans), params.configuration, params.arms)
    folder = Path(snakemake.input.manifest).parent / params.data_identifier
    plot_patches(
        patch=central_patch(folder, size),
        arms=planned,
        task=params.task,
        style=load_style(Path(snakemake.input.style)),
        outputs=[Path(path) for path in snakemake.output],
    )
