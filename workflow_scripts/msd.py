"""Archives of the Medical Segmentation Decathlon (MSD): the register, fetching, unpacking.

Only the standard library is imported at module level, since `rules/common.smk` reads the register
through this module before any job runs.
"""

import csv
import errno
import gzip
import hashlib
import os
import shutil
import tarfile
import time
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import log
from log import UserError

CHUNK = 1 << 22
DOWNLOAD_ATTEMPTS = 3


def read_register(path: str | Path) -> dict[str, dict[str, str]]:
    """Read `config/datasets.tsv`: task -> row (every cell a string, empty where not known)."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        return {row["task"]: row for row in csv.DictReader(file, delimiter="\t")}


def fetch_archive(
    task: str,
    url: str,
    md5: str,
    archive: str | Path,
    archives: str | Path | None = None,
    extra_md5: str | None = None,
    pause: float = 5.0,
) -> None:
    """Bring the archive of `task` to the path `archive`, its checksum verified.

    A file `{task}.tar` in the folder `archives` is linked, anything else is downloaded from `url`.
    Accepted are the register's `md5` and `extra_md5`. A failed download is tried again from the
    start after `pause` seconds; `archive` only ever holds a whole, verified file.

    Raises:
        UserError: wrong checksum, `archives` is no folder, or the archive cannot be had.
    """
    archive = Path(archive)
    archive.parent.mkdir(parents=True, exist_ok=True)
    part = archive.with_name(archive.name + ".part")
    accepted = [md5] + ([extra_md5] if extra_md5 else [])
    if archives is not None and not Path(archives).is_dir():
        raise UserError(f"archives: {archives} is not a folder.")
    local = Path(archives, f"{task}.tar").resolve() if archives is not None else None
    part.unlink(missing_ok=True)
    try:
        if local is not None and local.is_file():
            advice = (
                "Put the official archive there, or accept this one with the config key "
                f"`checksums: {{{task}: <found md5>}}` if you trust it."
            )
            _verify(local, accepted, str(local), advice)
            part.symlink_to(local)
        else:
            _download(task, url, part, pause)
            _verify(part, accepted, url, "The download was deleted; run again.")
        part.replace(archive)
    finally:
        part.unlink(missing_ok=True)


def _verify(path: Path, accepted: Collection[str], name: str, advice: str) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file, progress_bar(path.stat().st_size, "B", "checksum") as bar:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    found = digest.hexdigest()
    if found not in accepted:
        expected = " or ".join(accepted)
        raise UserError(f"{name}: wrong checksum: expected md5 {expected}, found {found}. {advice}")


def _download(task: str, url: str, part: Path, pause: float) -> None:
    import pooch
    import requests

    for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
        try:
            with progress_bar(1, "B", f"download {task}") as bar, _disk(part.parent):
                pooch.HTTPDownloader(progressbar=bar, chunk_size=CHUNK)(url, str(part), None)
            return
        except requests.RequestException as error:
            part.unlink(missing_ok=True)
            print(f"Attempt {attempt} of {DOWNLOAD_ATTEMPTS}: {error}", flush=True)
            reason = type(error).__name__
            if error.response is not None:
                reason = f"HTTP status {error.response.status_code}"
        if attempt < DOWNLOAD_ATTEMPTS:
            time.sleep(pause)
    raise UserError(
        f"{task}: {url} could not be downloaded ({reason}). Without network, put {task}.tar into a "
        "folder and name that folder with the config key `archives` (--config archives=DIR)."
    )


def extract_archive(archive: str | Path, folder: str | Path) -> None:
    """Unpack the MSD `archive` of the task `folder.name` into `folder`, which appears when whole.

    Every member must be a plain file or folder below `{task}/`. The unlabelled test images and
    the clutter of macOS (`._*`, `.DS_Store`) are left out; an empty `imagesTs` is always made,
    because nnU-Net's conversion insists on it.

    Raises:
        UserError: not a whole tar archive, a member that is refused, or a full disk.
    """
    archive, folder = Path(archive), Path(folder)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with _disk(folder.parent):
            part.mkdir(parents=True)
            _extract(archive, folder.name, part)
            (part / "imagesTs").mkdir(exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{archive}: truncated or not a tar archive ({error}). Delete it and fetch it again."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _extract(archive: Path, task: str, part: Path) -> None:
    total = archive.stat().st_size
    with tarfile.open(archive) as tar, progress_bar(total, "B", f"extract {task}") as bar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts:
                raise UserError(f"{archive}: member {member.name} leaves the folder; refused.")
            if not (member.isfile() or member.isdir()):
                raise UserError(
                    f"{archive}: member {member.name} is a link or device; refused: "
                    "an MSD archive has plain files and folders only."
                )
            if path.name.startswith("._") or path.name == ".DS_Store":
                continue
            if path.parts[:1] not in ((task,), ()):
                raise UserError(f"{archive}: member {member.name} is not below {task}/; refused.")
            target = part.joinpath(*path.parts[1:])
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
            elif len(path.parts) > 1 and path.parts[1] != "imagesTs":
                target.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                assert source is not None
                with target.open("wb") as file:
                    shutil.copyfileobj(source, file, CHUNK)
            bar.update(member.size)
        # tarfile takes a file cut off between two members for a whole one: ask for the end mark.
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(512) != bytes(512):
            raise tarfile.ReadError("no end-of-archive mark")
        bar.update(total - bar.n)


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Turn 'no space left' into a message that names the folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{folder}: the disk is full; make room and run again.") from error


@contextmanager
def progress_bar(total: int, unit: str, text: str) -> Iterator[Any]:
    """Progress bar on the terminal even where a script's output goes into its log."""
    from tqdm import tqdm

    terminal = os.dup(2 if log.TERMINAL is None else log.TERMINAL)
    interactive = os.isatty(terminal)
    with (
        os.fdopen(terminal, "w") as file,
        tqdm(
            total=total,
            desc=text,
            unit=unit,
            unit_scale=unit == "B",
            file=file,
            mininterval=0.5 if interactive else 15,
            delay=1,
            ascii=not interactive,
        ) as bar,
    ):
        yield bar
