"""Remove the archives of a study's tasks that were unpacked and converted."""

from collections.abc import Mapping
from pathlib import Path

from workflow_scripts.cleanup.disk_usage import remove, size_text
from workflow_scripts.common.console import announce, redirect


def clean_archives(archives: Mapping[str, Path], converted: Mapping[str, Path]) -> dict[str, int]:
    """Remove archives; return the freed bytes by task.

    If an archive is a link, its target stays and nothing is freed. Archives that are not converted
    yet are kept.

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
        freed = by_task.get(task)
        removed = None if freed is None else f"removed {size_text(freed)} of archives"
        announce(f"{task}: {removed or 'not converted yet, archive kept'}")
