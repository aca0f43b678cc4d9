"""Unpack the archive of one task and check the dataset in it."""

from pathlib import Path

from workflow_scripts.common.console import redirect
from workflow_scripts.common.errors import UserError
from workflow_scripts.data.archives import extract_archive
from workflow_scripts.data.dataset_checks import check_dataset


def extract_task(archive: str, folder: str, threads: int) -> int:
    """Unpack `archive` into `folder` and check it; return the number of labelled cases.

    Raises:
        UserError: see `archives.extract_archive` and `dataset_checks.check_dataset`.
    """
    extract_archive(archive, folder)
    try:
        return check_dataset(folder, threads)
    except UserError as error:
        source = Path(archive).resolve()
        raise UserError(f"{error}\n  Archive: {source}. Repair or replace it.") from error


if __name__ == "__main__":
    redirect(snakemake.log[0])
    cases = extract_task(
        archive=snakemake.input.archive,
        folder=snakemake.output.folder,
        threads=snakemake.threads,
    )
    print(f"{snakemake.wildcards.task}: {cases} labelled cases, checked.")
