"""Bring a dataset of the user's own into nnU-Net's raw format; its folder is only read."""

import json
import shutil
from pathlib import Path


def import_own_task(folder: str, target: Path, preprocessed: Path, task: str, threads: int) -> int:
    """Check the dataset in `folder` and make `target` of it; return the number of cases.

    nnU-Net's raw format is linked file by file, MSD's is converted as MSD's own tasks are.

    Args:
        folder: the user's.
        target: folder of the dataset in nnU-Net's raw folder.
        preprocessed: nnU-Net's preprocessed folder.
        task: name of the task in the configuration.
        threads: to check and convert with.

    Raises:
        UserError: the dataset has faults, or nnU-Net knows another one by the same number.
    """
    import nnunet
    from own_task import SOURCE, is_raw

    refuse_taken_number(target, preprocessed, task)
    source = Path(folder).absolute()
    staging = target.with_name(f".{target.name}.import")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        if is_raw(source):
            link_raw(source, staging / target.name, threads)
            if target.exists():
                target.rename(staging / "old")
            (staging / target.name).rename(target)
        else:
            convert_msd(source, staging / task, target, threads)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    description = json.loads((target / "dataset.json").read_text())
    nnunet.write_json({**description, SOURCE: str(source)}, target / "dataset.json")
    return description["numTraining"]


def refuse_taken_number(target: Path, preprocessed: Path, task: str) -> None:
    """Raise UserError if there is a dataset with the number of `target` and another name."""
    from log import UserError

    number = target.name.partition("_")[0]
    for other in sorted((*target.parent.glob(f"{number}_*"), *preprocessed.glob(f"{number}_*"))):
        if other.name != target.name:
            raise UserError(
                f"own_tasks.{task}: {other} has its number already, by which nnU-Net tells "
                "datasets apart; take a free one, or delete that folder."
            )


def link_raw(source: Path, target: Path, threads: int) -> None:
    """Check a dataset in nnU-Net's raw format and make `target` of links to its files.

    Raises UserError with the faults of the dataset.
    """
    import nnunet
    from own_task import ENDING, check_raw

    description, cases = check_raw(source, threads)
    for place in ("imagesTr", "labelsTr"):
        (target / place).mkdir(parents=True)
    for case, (images, label) in cases.items():
        for number, image in enumerate(images):
            (target / f"imagesTr/{case}_{number:04d}{ENDING}").symlink_to(image.absolute())
        (target / f"labelsTr/{case}{ENDING}").symlink_to(label.absolute())
    description.pop("dataset", None)
    nnunet.write_json(description, target / "dataset.json")


def convert_msd(source: Path, staged: Path, target: Path, threads: int) -> None:
    """Check a dataset in MSD's format and convert it to `target`.

    nnU-Net insists on a folder of test images and takes number and name of the dataset from the
    folder's name: so it is shown `staged`, a folder with links.

    Raises UserError with the faults of the dataset.
    """
    from convert_task import convert_task
    from msd_check import check_dataset

    check_dataset(source, threads)
    (staged / "imagesTs").mkdir(parents=True)
    for name in ("dataset.json", "imagesTr", "labelsTr"):
        (staged / name).symlink_to(source / name)
    convert_task(str(staged), str(target), threads)


if __name__ == "__main__":
    from log import redirect

    redirect(snakemake.log[0])
    import nnunet

    task = snakemake.params.task
    # Not from params: `check_own_tasks` says what a folder that changed means.
    cases = import_own_task(
        folder=snakemake.config["own_tasks"][task]["folder"],
        target=Path(snakemake.output.dataset).parent,
        preprocessed=nnunet.PREPROCESSED,
        task=task,
        threads=snakemake.threads,
    )
    print(f"{snakemake.wildcards.dataset}: {cases} cases imported.")
