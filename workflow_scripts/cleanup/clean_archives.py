"""Remove the archives of a study's tasks that were unpacked and converted."""

from collections.abc import Mapping
from pathlib import Path

from workflow_scripts.cleanup.disk_usage import remove, size_text
from workflow_scripts.common.console import announce, redirect


def clean_archives(archives: Mapping[str, Path], converted: Mapping[str, Path]) -> dict[str, int]:
    """Remove archives; return the freed bytes by task.

    Of one that is a link the file that it leads to stays, and nothing is freed. One that is not
    converted yet is kept.

    Args:
        archives: task -> archive.
        converted: task -> dataset.json of nnU-Net's raw dataset.

    Raises:
        UserError: an archive cannot be removed.
    """
    return {
        task: remove([archive]) for task, archive in archives.items() if converted[task].is_file()
    }


if __name__ == "__main__":
    redirect(snakemake.log[0])

    params = snakemake.params
    by_task = clean_archives(
        archives={task: Path(path) for task, path in params.archives.items()},
        converted={task: Path(path) for task, path in params.converted.items()},
    )
    for task in params.archives:
        freed = size_text(by_task[task]) if task in by_task else "not converted yet, nothing"
        announce(f"{task}: {freed} of archives removed")
