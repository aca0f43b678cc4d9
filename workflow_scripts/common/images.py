"""Read images with the reader class that nnU-Net chooses for the dataset."""

import contextlib
import gzip
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import PIL.Image
import SimpleITK
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import (
    LIST_OF_IO_CLASSES,
    determine_reader_writer_from_dataset_json,
    recursive_find_reader_writer_by_name,
)
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from numpy.typing import NDArray

from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import read_json, visible

ENDINGS = tuple(
    dict.fromkeys(
        ending for reader in LIST_OF_IO_CLASSES for ending in reader.supported_file_endings
    )
)
"""File endings that nnU-Net's readers support, in lower case."""
READ_CHUNK = 1 << 24
GIPL_HEADER = 256
PNG_BEGIN, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


@dataclass(frozen=True)
class Image:
    """An image or a label map.

    Attributes:
        values: as nnU-Net reads them, float32 of shape (channels, z, y, x); 2D images have z = 1.
        spacing: voxel spacing (z, y, x) in mm, as nnU-Net reads it.
        affine: 4 × 4, from voxel indices (x, y, z) to RAS coordinates in mm; None for formats
            without orientation (TIFF, PNG).
    """

    values: NDArray[np.float32]
    spacing: tuple[float, ...]
    affine: NDArray[np.float64] | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along (z, y, x)."""
        return self.values.shape[1:]


def find_reader(description: Mapping[str, Any], example: Path) -> BaseReaderWriter:
    """Return the reader that nnU-Net 2.8.1 chooses for a dataset.

    The choice depends on `overwrite_image_reader_writer` and `file_ending` in `dataset.json`, and
    on which class can open the first image. If none can, the first class for the file ending is
    returned, so that the error shows up when a file is read.

    Args:
        description: content of `dataset.json`.
        example: first image of the first case, sorted by name.

    Raises:
        UserError: nnU-Net has no reader of that name, or none for the file ending.
    """
    ending, name = description["file_ending"], description.get("overwrite_image_reader_writer")
    if name not in (None, "None"):
        with contextlib.suppress(RuntimeError):
            return recursive_find_reader_writer_by_name(name)()
        raise UserError(
            f"`overwrite_image_reader_writer` is {name}, but nnU-Net has no such reader; it has "
            f"{', '.join(reader.__name__ for reader in LIST_OF_IO_CLASSES)}"
        )
    known = [r for r in LIST_OF_IO_CLASSES if ending.lower() in r.supported_file_endings]
    if not known:
        raise UserError(f"`file_ending` is {ending}, but nnU-Net reads {', '.join(ENDINGS)} only")
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            return determine_reader_writer_from_dataset_json(dict(description), str(example))()
        except RuntimeError:
            return known[0]()


def reader_of(raw: Path) -> BaseReaderWriter:
    """Return the reader that nnU-Net chooses for a dataset in its raw folder.

    Raises:
        UserError: as for `find_reader`, or the dataset is missing.
    """
    description = read_json(raw / "dataset.json")
    ending = description["file_ending"]
    channel = len("_0000") + len(ending)
    images = visible(raw / "imagesTr", f"*{ending}")
    first = min(images, key=lambda path: (path.name[:-channel], path.name), default=None)
    if first is None:
        raise UserError(f"{raw / 'imagesTr'} has no {ending} files: import or convert them again")
    return find_reader(description, first)


def read_image(reader: BaseReaderWriter, path: Path) -> Image:
    """Read one image file; exceptions are those of the reader."""
    return _image(*reader.read_images([str(path)]))


def read_label(reader: BaseReaderWriter, path: Path) -> Image:
    """Read a label map; exceptions are those of the reader."""
    return _image(*reader.read_seg(str(path)))


def load_image(reader: BaseReaderWriter, path: Path) -> Image:
    """Read one image file; raise UserError if it is missing or cannot be read."""
    return _load(read_image, reader, path)


def load_label(reader: BaseReaderWriter, path: Path) -> Image:
    """Read a label map or a prediction; raise UserError if it is missing or cannot be read."""
    return _load(read_label, reader, path)


def _load(read: Callable[..., Image], reader: BaseReaderWriter, path: Path) -> Image:
    if not path.is_file():
        raise UserError(f"{path} is missing: train this fold again")
    try:
        return read(reader, path)
    except Exception as error:  # each reader has its own exceptions
        raise UserError(f"{path} {describe_failure(reader, error)}") from error


def _image(values: NDArray[np.float32], properties: Mapping[str, Any]) -> Image:
    affine = None
    if itk := properties.get("sitk_stuff"):
        axes = len(itk["spacing"])
        used = min(axes, 3)  # in a 4D file the fourth axis contains the channels
        affine = np.eye(4)
        direction = np.reshape(itk["direction"], (axes, axes))[:used, :used]
        affine[:used, :used] = direction * itk["spacing"][:used]
        affine[:used, 3] = itk["origin"][:used]
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # ITK's coordinates are LPS
    elif nib := properties.get("nibabel_stuff"):
        affine = np.asarray(nib.get("reoriented_affine", nib["original_affine"]), dtype=float)
    return Image(values, tuple(float(size) for size in properties["spacing"]), affine)


def check_name(case: str) -> str | None:
    """Return why nnU-Net or the file system cannot handle the name of a case; None if they can."""
    if case.endswith("_seg"):
        return "nnU-Net treats files ending in _seg as segmentations: rename the case"
    if "/" in case or not case.isprintable():
        return "the name contains a / or a control character: rename the case"
    return None


def check_whole(path: Path) -> None:
    """Check that a file is complete, for formats whose readers accept truncated files.

    SimpleITK silently pads truncated NIfTI and GIPL files, and scikit-image reads truncated PNG
    files. Files of other formats are not checked here.

    Raises:
        EOFError: the file is truncated.
        OSError, zlib.error, RuntimeError, nibabel's errors: it is corrupt, or of another format.
    """
    name = path.name.lower()
    if name.endswith((".nii.gz", ".nii")):
        image: Any = nibabel.load(path)
        voxels, item = math.prod(image.shape), image.get_data_dtype().itemsize
        if image.get_data_dtype().kind == "c":
            raise RuntimeError("complex numbers, of which nnU-Net would keep the real part")
        wanted = int(image.dataobj.offset) + voxels * item
    elif name.endswith(".gipl"):
        header = SimpleITK.ImageFileReader()
        header.SetFileName(str(path))
        header.ReadImageInformation()
        item = SimpleITK.GetArrayFromImage(SimpleITK.Image([1, 1], header.GetPixelID())).itemsize
        wanted = GIPL_HEADER + math.prod(header.GetSize()) * item
    elif name.endswith(".png"):
        content = path.read_bytes()
        if not content.startswith(PNG_BEGIN):
            raise RuntimeError("not a PNG image, despite its name")
        if not content.endswith(PNG_END):
            raise EOFError("the end is missing")
        return
    else:
        return
    if name.endswith(".gz"):
        with gzip.open(path) as file:  # verifies the checksum
            size = sum(len(data) for data in iter(lambda: file.read(READ_CHUNK), b""))
    else:
        size = path.stat().st_size
    if size < wanted:
        raise EOFError(f"{wanted - size} bytes short")


def check_values(path: Path) -> None:
    """Check that a 2D image file stores values, not numbers of colours in a palette.

    nnU-Net would read the colours: three channels, and no label.

    Raises:
        RuntimeError: it has a palette.
        OSError: it is no image.
    """
    with PIL.Image.open(path) as image:
        if image.mode == "P":
            raise RuntimeError(
                "it has a palette, and nnU-Net would read its colours: save a label as grey values "
                "0, 1, 2, …, an image as grey or RGB"
            )


def describe_failure(reader: BaseReaderWriter, error: Exception) -> str:
    """Return the reason why a file could not be read, in one line."""
    told = str(error).strip().splitlines() or [type(error).__name__]
    reason = told[-1].rpartition("ITK ERROR: ")[2]
    name = type(reader).__name__
    text = f"cannot be read by nnU-Net's {name} ({reason})"
    if isinstance(reader, SimpleITKIO) and "orthonormal" in reason:
        text += '; add "overwrite_image_reader_writer": "NibabelIO" to dataset.json'
    return text
