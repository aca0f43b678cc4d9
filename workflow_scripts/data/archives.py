"""Fetch and unpack archives of the Medical Segmentation Decathlon (MSD)."""

import errno
import gzip
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import pooch
import requests

from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import replacing
from workflow_scripts.common.progress import progress_bar

CHUNK = 1 << 22


def fetch_archive(
    task: str,
    url: str,
    md5: str,
    archive: str | Path,
    archives: str | Path | None = None,
    extra_md5: str | None = None,
) -> None:
    """Fetch the archive of `task` to the path `archive` and verify its checksum.

    If the folder `archives` contains `{task}.tar`, that file is linked; otherwise the archive is
    downloaded from `url`. The checksum must be the register's `md5` or `extra_md5`. `archive`
    exists only once it is complete and verified.

    Raises:
        UserError: the checksum is wrong, `archives` is not a folder, or the download failed.
    """
    folder = Path(archives).expanduser() if archives is not None else None
    if folder is not None and not folder.is_dir():
        raise UserError(f"archives: {archives} is not a folder.")
    local = (folder / f"{task}.tar").resolve() if folder is not None else None
    with replacing(Path(archive)) as part:
        if local is not None and local.is_file():
            part.symlink_to(local)
            source, advice = (
                str(local),
                (
                    "Put the official archive there, or accept this one with the config key "
                    f"`checksums: {{{task}: <found md5>}}` if you trust it."
                ),
            )
        else:
            _download(task, url, part)
            source, advice = url, "The download was deleted; run again."
        # pooch.retrieve also verifies, but accepts only one checksum and downloads again otherwise.
        found = pooch.file_hash(str(part), alg="md5")
        if found not in (md5, extra_md5):
            expected = " or ".join(filter(None, (md5, extra_md5)))
            raise UserError(
                f"{source}: wrong checksum: expected md5 {expected}, found {found}. {advice}"
            )


def _download(task: str, url: str, part: Path) -> None:
    try:
        with progress_bar(1, "B", f"download {task}") as bar, _disk(part.parent):
            pooch.HTTPDownloader(progressbar=bar, chunk_size=CHUNK)(url, str(part), None)
    except requests.RequestException as error:
        print(error, flush=True)
        reason = type(error).__name__
        if error.response is not None:
            reason = f"HTTP status {error.response.status_code}"
        raise UserError(
            f"{task}: {url} could not be downloaded ({reason}). Without network, put {task}.tar "
            "into a folder and name that folder with the config key `archives` "
            "(--config archives=DIR)."
        ) from error


def extract_archive(archive: str | Path, folder: str | Path) -> None:
    """Unpack the MSD `archive` of the task `folder.name` into `folder`, atomically.

    Every member must be a plain file or folder below `{task}/`. The unlabelled test images and
    hidden files of macOS (`._*`, `.DS_Store`) are skipped. An empty `imagesTs` is always created,
    because nnU-Net's conversion requires it.

    Raises:
        UserError: the tar archive is incomplete, a member is refused, or the disk is full.
    """
    archive, folder = Path(archive), Path(folder)
    try:
        with replacing(folder) as part, _disk(folder.parent):
            part.mkdir()
            _extract(archive, folder.name, part)
            (part / "imagesTs").mkdir()
            shutil.rmtree(folder, ignore_errors=True)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{archive}: truncated or not a tar archive ({error}). Delete it and fetch it again."
        ) from error


def _extract(archive: Path, task: str, part: Path) -> None:
    # Not with `extractall`: its filters need Python 3.11.4 (Debian 12 has 3.11.2).
    total = archive.stat().st_size
    with tarfile.open(archive) as tar, progress_bar(total, "B", f"extract {task}") as bar:
        for member in tar:
            bar.update(member.size)
            path = PurePosixPath(member.name)
            if path.name.startswith("._") or path.name == ".DS_Store":
                continue
            if path.parts[:1] not in ((task,), ()) or ".." in path.parts:
                raise UserError(f"{archive}: member {member.name} is not below {task}/; refused.")
            if not (member.isfile() or member.isdir()):
                raise UserError(
                    f"{archive}: member {member.name} is a link or device; refused: "
                    "an MSD archive has plain files and folders only."
                )
            inner = path.parts[1:]
            if not inner or inner[0] == "imagesTs":
                continue
            target = part.joinpath(*inner)
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            assert content is not None, "None is for links and devices only"
            with content, target.open("wb") as file:
                shutil.copyfileobj(content, file, CHUNK)
        # tarfile accepts a file that was cut off between two members, so check for the end mark.
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
