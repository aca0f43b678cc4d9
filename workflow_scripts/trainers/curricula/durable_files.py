"""Replace a file so that the old or the new content survives a power cut."""

import errno
import os
from pathlib import Path


def replace_durably(partial: Path, path: Path) -> None:
    """Replace `path` by the complete file or folder `partial` next to it.

    A rename may reach the disk before the content that it names. So the content of a file is
    written out first, and the folder that contains its name afterwards.
    """
    if partial.is_file() and not partial.is_symlink():
        sync(partial)
    partial.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Write a file's content, or a folder's names, out to the disk.

    Does nothing where the file system cannot do so for a folder, as some network file systems.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)
