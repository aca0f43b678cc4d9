"""Remove the preprocessed arrays of a study's tasks; plans, fingerprint and folds stay."""

from collections.abc import Mapping
from pathlib import Path

from workflow_scripts.cleanup.disk_usage import remove, size_text, unfinished_trainings
from workflow_scripts.common.console import announce, redirect
from workflow_scripts.common.errors import UserError


def clean_preprocessed(
    folders: Mapping[str, Path], plans: str, configuration: str, results: Path
) -> dict[str, int]:
    """Remove the output of `preprocess_task`; return the freed bytes by task.

    The manifest is removed first, so that incomplete arrays are never taken for complete ones.

    Args:
        folders: task -> nnU-Net's preprocessed folder of its dataset.
        plans: name of nnU-Net's own plans.
        configuration: configuration of the plans.
        results: folder of the studies, none of which may still need the arrays.

    Raises:
        UserError: a training on one of the tasks is not finished; then nothing is removed.
    """
    for task, folder in folders.items():
        for fold in unfinished_trainings(results, folder.name, plans, configuration):
            raise UserError(
                f"{fold} is not finished and needs the preprocessed data of {task}: let it "
                "finish, or delete that folder. Nothing was removed."
            )
    freed = {}
    for task, folder in folders.items():
        identifier = f"{plans}_{configuration}"
        freed[task] = remove([folder / f"{identifier}.manifest.json", folder / identifier])
        if not list(folder.glob("*.manifest.json")):
            freed[task] += remove([folder / "gt_segmentations"])
    return freed


if __name__ == "__main__":
    redirect(snakemake.log[0])

    by_task = clean_preprocessed(
        folders={task: Path(folder) for task, folder in snakemake.params.folders.items()},
        plans=snakemake.params.plans,
        configuration=snakemake.params.configuration,
        results=Path("results"),
    )
    for task, size in by_task.items():
        announce(f"{task}: {size_text(size)} of preprocessed data removed")
