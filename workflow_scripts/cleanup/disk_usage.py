"""Measure and remove files in resources/ that can be made again."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from workflow_scripts.common.errors import UserError


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; 0 for links and missing paths."""
    if path.is_symlink() or not path.exists():
        return 0
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir())


def remove(paths: Iterable[Path]) -> int:
    """Remove files, links and folders that exist; return the freed bytes.

    Raises:
        UserError: one cannot be removed.
    """
    freed = 0
    for path in paths:
        size = size_of(path)
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{path} cannot be removed ({error.strerror}).") from error
        freed += size
    return freed


def size_text(size: int) -> str:
    """Return a size for readers, such as `1.24 GB`, in powers of ten."""
    for unit, scale in {"GB": 1e9, "MB": 1e6, "kB": 1e3}.items():
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} B"


def unfinished_trainings(results: Path, dataset: str, plans: str, configuration: str) -> list[Path]:
    """Return the fold folders of all studies whose training on these data began but has not ended.

    Args:
        results: folder of the studies.
        dataset: nnU-Net's name of the dataset.
        plans: name of nnU-Net's plans; those with overrides begin with it and use the same data.
        configuration: configuration of the plans.
    """
    model = f"{dataset}/*__{plans}*__{configuration}/fold_*"
    folders = [*results.glob(f"*/nnunet/*/{model}"), *results.glob(f"*/nnunet/*/seed_*/{model}")]
    return [
        fold
        for fold in sorted(folders)
        if ((fold / "identity.json").exists() or (fold / "checkpoint_latest.pth").exists())
        and not (
            (fold / "checkpoint_final.pth").exists()
            and (fold / "validation" / "summary.json").exists()
        )
    ]
