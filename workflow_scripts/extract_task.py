"""Unpack the archive of one task and check the dataset in it."""

from pathlib import Path


def extract_task(archive: str, folder: str, threads: int) -> int:
    """Unpack `archive` into `folder` and check it; return the number of labelled cases.

    Raises:
        UserError: see `msd.extract_archive` and `msd_check.check_dataset`.
    """
    from log import UserError
    from msd import extract_archive
    from msd_check import check_dataset

    extract_archive(archive, folder)
    try:
        return check_dataset(folder, threads)
    except UserError as error:
        source = Path(archive).resolve()
        raise UserError(f"{error}\n  Archive: {source}. Repair or replace it.") from error


if __name__ == "__main__":
    from log import redirect

    redirect(snakemake.log[0])
    cases = extract_task(
        archive=snakemake.input.archive,
        folder=snakemake.output.folder,
        threads=snakemake.threads,
    )
    print(f"{snakemake.wildcards.task}: {cases} labelled cases, checked.")
