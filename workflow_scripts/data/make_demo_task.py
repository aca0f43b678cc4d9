"""Generate the demo task: small brain volumes in MSD's format, from the ICBM 2009a template.

The template (T1 and the maps of grey and white matter) comes with the package nilearn, so nothing
is downloaded. Each case is the template under a smooth random deformation, with its own contrast,
bias field and noise, cropped to the left part of the brain at 2 mm. The labels are deformed with
the image and are therefore exact. The task is semi-synthetic and does not show medical performance.
"""

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import NamedTuple

import nibabel
import nilearn
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from workflow_scripts.common.console import redirect
from workflow_scripts.common.files import replacing
from workflow_scripts.common.progress import progress_bar
from workflow_scripts.study.tasks import DEMO_TASK

LABELS = {"0": "background", "1": "grey matter", "2": "white matter"}
SPACING = 2.0
"""Voxel edge of the cases in mm."""
SHAPE = (48, 56, 48)
"""Median shape of the cases in voxels; each case differs by up to 4 voxels per axis."""
CENTRE = (-32.0, -18.0, 12.0)
"""Centre of the crop in ICBM space (mm); the crop extends beyond the left border of the brain."""

Array = NDArray[np.float32]


class Template(NamedTuple):
    """Volumes of equal shape (x, y, z) with values in [0, 1], and their affine (voxel -> mm)."""

    t1: Array
    grey: Array
    white: Array
    affine: NDArray[np.float64]


def load_template() -> Template:
    """Read nilearn's ICBM 2009a template at 1 mm, slightly smoothed for sampling at 2 mm."""
    folder = Path(nilearn.__file__).parent / "datasets" / "data"
    volumes = []
    for name in ("t1", "gm", "wm"):
        path = folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
        image = nibabel.nifti1.Nifti1Image.from_filename(path)
        volume = np.asarray(image.dataobj, dtype=np.float32) / 255
        volumes.append(gaussian_filter(volume, 0.6, truncate=3))
    return Template(volumes[0], volumes[1], volumes[2], np.asarray(image.affine))


def smooth_field(random: np.random.Generator, shape: tuple[int, ...], period: float) -> Array:
    """Return a random field of `shape`, mean 0 and standard deviation 1, varying over `period` mm.

    It is a cubic B-spline over normally distributed control points, as in free-form deformation.
    """
    bases = []
    for n in shape:
        knot, t = np.divmod(np.arange(n) * SPACING / period, 1)
        basis = np.zeros((n, int(knot[-1]) + 4))
        weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        for i, weight in enumerate(weights):
            basis[np.arange(n), knot.astype(int) + i] = weight
        bases.append(basis)
    control = random.standard_normal([basis.shape[1] for basis in bases])
    field = np.einsum("abc,xa,yb,zc->xyz", control, *bases, optimize=True)
    return ((field - field.mean()) / field.std()).astype(np.float32)


def make_case(template: Template, seed: int, case: int) -> tuple[Array, NDArray[np.uint8]]:
    """Return (image, label) of one case, both of the same shape: a pure function of (seed, case).

    The deformation consists of a small rotation, scaling and shift, and of two smooth displacement
    fields: a wide one (shape of the brain) and a narrow one (thickness and course of the cortex).
    """
    random = np.random.default_rng([seed, case])
    shape = tuple(int(n) + int(random.integers(-4, 5)) for n in SHAPE)
    grid = np.indices(shape, dtype=np.float64).reshape(3, -1)
    offset = (grid - (np.array(shape)[:, None] - 1) / 2) * SPACING
    turn = Rotation.from_euler("xyz", random.uniform(-8, 8, 3), degrees=True).as_matrix()
    place = turn @ offset * random.uniform(0.93, 1.07, (3, 1))
    place += np.array(CENTRE)[:, None] + random.uniform(-4, 4, (3, 1))
    for axis in range(3):
        place[axis] += 2.2 * smooth_field(random, shape, 36).ravel()
        place[axis] += 0.8 * smooth_field(random, shape, 16).ravel()

    inverse = np.linalg.inv(template.affine)
    voxels = inverse[:3, :3] @ place + inverse[:3, 3:]
    t1, grey, white = (
        map_coordinates(volume, voxels, order=1).reshape(shape) for volume in template[:3]
    )
    label = np.where(grey > white, 1, 2).astype(np.uint8)
    label[grey + white < 0.5] = 0

    # A change of each tissue's mean, a gamma and a bias field shared by all tissues.
    image = t1 + random.uniform(-0.08, 0.03) * grey + random.uniform(-0.03, 0.08) * white
    image = np.clip(image, 0, None) ** random.uniform(0.9, 1.5)
    image *= np.exp(random.uniform(0.05, 0.15) * smooth_field(random, shape, 60))
    deviation = random.uniform(0.02, 0.05)
    noise = random.normal(0, deviation, (2, *shape))
    image = np.hypot(image + noise[0], noise[1])
    return (image * random.uniform(400, 900)).astype(np.float32), label


def describe(cases: list[str]) -> dict:
    """Return the `dataset.json` of the demo task."""
    return {
        "name": "BrainTissue",
        "description": "Semi-synthetic: random deformations, contrasts and noise of one average "
        "brain, made to show that the workflow runs. It shows no medical performance.",
        "reference": "Fonov et al., NeuroImage 54(1), 2011, doi:10.1016/j.neuroimage.2010.07.033; "
        "Fonov et al., NeuroImage 47, S102, 2009, doi:10.1016/S1053-8119(09)70884-5",
        "licence": "ICBM 2009a template: Copyright (C) 1993-2004 Louis Collins, McConnell Brain "
        "Imaging Centre, Montreal Neurological Institute, McGill University. Permission to use, "
        "copy, modify, and distribute for any purpose and without fee, provided that the "
        'copyright notice appears in all copies; provided "as is" without warranty.',
        "release": "1.0",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": LABELS,
        "numTraining": len(cases),
        "numTest": 0,
        "training": [
            {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}
            for case in cases
        ],
        "test": [],
    }


def encode(volume: NDArray, affine: NDArray) -> bytes:
    """Return a volume as reproducible bytes of a `.nii.gz` file (no name, no date)."""
    image = nibabel.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)


def write_archive(path: str | Path, cases: int, seed: int) -> None:
    """Write the demo task as an MSD archive; the same arguments give the same bytes."""
    template = load_template()
    names = [f"brain_{case:03d}" for case in range(cases)]
    affine = np.diag([SPACING, SPACING, SPACING, 1])
    with (
        replacing(Path(path)) as part,
        tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for folder in ("", "/imagesTr", "/labelsTr", "/imagesTs"):
            _add(tar, f"{DEMO_TASK}{folder}", None)
        _add(tar, f"{DEMO_TASK}/dataset.json", json.dumps(describe(names), indent=2).encode())
        with progress_bar(cases, "case", "make the demo task") as bar:
            for case, name in enumerate(names):
                image, label = make_case(template, seed, case)
                image = np.rint(image).astype(np.int16)
                _add(tar, f"{DEMO_TASK}/imagesTr/{name}.nii.gz", encode(image, affine))
                _add(tar, f"{DEMO_TASK}/labelsTr/{name}.nii.gz", encode(label, affine))
                bar.update(1)


def _add(tar: tarfile.TarFile, name: str, data: bytes | None) -> None:
    member = tarfile.TarInfo(name)
    if data is None:
        member.type, member.mode = tarfile.DIRTYPE, 0o755
    else:
        member.size = len(data)
    tar.addfile(member, io.BytesIO(data or b""))


if __name__ == "__main__":
    redirect(snakemake.log[0])
    write_archive(
        path=snakemake.output.archive,
        cases=snakemake.params.cases,
        seed=snakemake.params.seed,
    )
