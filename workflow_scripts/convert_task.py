"""Convert a checked MSD dataset to nnU-Net's raw format by nnU-Net's own conversion."""

import os
import shutil
from pathlib import Path


def convert_task(source: str, target: str, processes: int) -> int:
    """Convert the MSD dataset `source` (`…/Task04_Hippocampus`) to the folder `target`.

    nnU-Net refuses to convert where the dataset's number is taken, so it works in a staging folder
    of its own; the whole result then replaces an earlier one. Returns the number of cases.

    Raises:
        UserError: the conversion left a case or channel out.
    """
    from msd_check import read_description

    final = Path(target)
    staging = final.with_name(f".{final.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    os.environ.update(nnUNet_raw=str(staging.resolve()))
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        os.environ.pop(name, None)
    from nnunetv2.dataset_conversion.convert_MSD_dataset import convert_msd_dataset

    try:
        convert_msd_dataset(source, num_processes=processes)
        description = read_description(source)
        check_conversion(description, staging / final.name)
        if final.exists():
            final.rename(staging / "old")
        (staging / final.name).rename(final)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return len(description["training"])


def check_conversion(description: dict, folder: Path) -> None:
    """Compare an nnU-Net raw dataset with the MSD description that it was made from.

    Raises:
        UserError: names the first file that is missing.
    """
    from log import UserError
    from msd_check import case_name

    wanted = ["dataset.json"]
    for entry in description["training"]:
        case = case_name(entry["label"])
        wanted += [f"imagesTr/{case}_{i:04d}.nii.gz" for i in range(len(description["modality"]))]
        wanted.append(f"labelsTr/{case}.nii.gz")
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder.name}: nnU-Net's conversion left out {len(missing)} files, "
            f"the first is {missing[0]}."
        )


if __name__ == "__main__":
    from log import redirect

    redirect(snakemake.log[0])
    cases = convert_task(
        source=snakemake.input.folder,
        target=str(Path(snakemake.output.dataset).parent),
        processes=snakemake.threads,
    )
    print(f"{snakemake.wildcards.dataset}: {cases} cases converted.")
