"""Normalised surface distance (NSD) of a run's predictions of its validation cases.

NSD is the share of both surfaces that lies within a tolerance of the other surface, as MSD ranks by
it beside Dice: Nikolov et al., arXiv:1809.04430, measured with their library `surface-distance`.
"""

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from log import UserError
from results import read_cases, read_json
from run_record import write_csv

COLUMNS = ["case", "label", "nsd", "tolerance_mm"]


def surface_dice(
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    spacing: tuple[float, ...],
    tolerance: float,
) -> float:
    """NSD of two masks of the same shape; `spacing` and `tolerance` in mm.

    NaN if both are empty (as nnU-Net's Dice), 0 if one is.
    """
    from surface_distance import compute_surface_dice_at_tolerance, compute_surface_distances

    if not reference.any() and not prediction.any():
        return math.nan
    if not reference.any() or not prediction.any():
        return 0.0
    distances = compute_surface_distances(reference, prediction, spacing)
    return float(compute_surface_dice_at_tolerance(distances, tolerance))


def load_labels(path: Path) -> tuple[NDArray[np.integer], tuple[float, ...]]:
    """Labels and voxel spacing (mm) of a NIfTI file; `UserError` if it is missing."""
    if not path.is_file():
        raise UserError(f"{path} is missing, and the surface distance needs it: train again")
    image = nib.nifti1.load(path)
    spacing = tuple(float(size) for size in image.header.get_zooms()[:3])
    return np.asarray(image.dataobj).astype(np.int16), spacing


def measure_run(run_json: Path, references: Path, tolerance: float | None) -> pd.DataFrame:
    """One row a validation case and label of the run (columns `COLUMNS`), in summary.json's order.

    `references` is nnU-Net's folder labelsTr. Without a tolerance the NSD is missing, and no image
    is read. `UserError` names an image that is missing or that does not fit its reference.
    """
    record = read_json(run_json)
    table = read_cases(run_json.with_name("summary.json"), record["label_names"])
    table = table[["case", "label"]].assign(nsd=math.nan, tolerance_mm=tolerance)
    if tolerance is None:
        return table[COLUMNS]
    for case, rows in table.groupby("case", sort=False):
        path = Path(record["results_folder"], "validation", f"{case}.nii.gz")
        reference, spacing = load_labels(references / path.name)
        prediction, _ = load_labels(path)
        if reference.shape != prediction.shape:
            raise UserError(f"{path} has the shape {prediction.shape}, not that of its reference")
        for row, label in rows["label"].items():
            masks = (reference == int(label), prediction == int(label))
            table.loc[row, "nsd"] = surface_dice(*masks, spacing, tolerance)
    return table[COLUMNS]


if __name__ == "__main__":
    from log import redirect

    redirect(snakemake.log[0])
    given = snakemake.params.tolerance_mm
    write_csv(
        measure_run(
            run_json=Path(snakemake.input.run),
            references=Path(snakemake.input.dataset).parent / "labelsTr",
            tolerance=float(given) if given else None,
        ),
        Path(snakemake.output.surface),
    )
