"""Read, write and hash files."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from workflow_scripts.common.errors import UserError
from workflow_scripts.trainers.curricula.durable_files import replace_durably


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path next to `path` for a file or folder, which then replaces `path`.

    Readers thus never see incomplete output, nor an incomplete file after a power cut. Incomplete
    output is removed, including that of an earlier process that was killed. If `path` is a folder,
    the caller must remove it first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    _remove(partial)
    try:
        yield partial
        replace_durably(partial, path)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(value: object, path: Path) -> None:
    """Write JSON atomically."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table atomically."""
    with replacing(path) as partial:
        table.to_csv(partial, index=False)


TEXTS = [
    "case",
    "label",
    "label_name",
    "patch_size",
    "field_of_view",
    "git_commit",
    "trainer_code",
    "plans_hash",
    "splits_hash",
]
"""Columns of the workflow's tables that are always read as text."""


def read_csv(path: Path | str) -> pd.DataFrame:
    """Read one of the workflow's tables.

    Names stay text: a case `007` or a label `NA` is neither a number nor a missing value. Only an
    empty cell is missing.
    """
    text = dict.fromkeys(TEXTS, str)
    return pd.read_csv(path, dtype=text, keep_default_na=False, na_values=[""])


def read_json(path: Path, advice: str = "", kind: type = dict) -> Any:
    """Read JSON with content of type `kind`; raise UserError if the file is missing or broken.

    `advice` explains how to get an intact file, if running Snakemake again is not enough.
    """
    again = advice or "delete it and run again"
    try:
        # Some editors on Windows begin a file with a byte order mark.
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text, object_pairs_hook=_reject_duplicates)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {advice or 'run again'}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {again}") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); {again}") from None
    if not isinstance(content, kind):
        raise UserError(
            f"{path} does not contain a JSON {'object' if kind is dict else 'list'}; {again}"
        )
    return content


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; raise ValueError for duplicate keys, of which Python keeps the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"duplicate key {next(key for key in keys if keys.count(key) > 1)!r}")
    return found


def visible(folder: Path, pattern: str = "*") -> list[Path]:
    """List a folder without hidden files, such as macOS's `._*` and `.DS_Store`."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def digest(path: Path) -> str:
    """Return a short digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
