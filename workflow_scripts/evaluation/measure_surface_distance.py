"""Normalised surface distance (NSD) of a run's predictions for its validation cases.

NSD is the share of both surfaces that lies within a tolerance of the other surface (Nikolov et al.,
arXiv:1809.04430). It is measured with the authors' library `surface-distance`. MSD ranks by Dice
and NSD.
"""

import math
from pathlib import Path

import numpy as np
import pandas as pd
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from numpy.typing import NDArray
from surface_distance import compute_surface_dice_at_tolerance, compute_surface_distances

from workflow_scripts.common.console import redirect
from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import read_json, write_csv
from workflow_scripts.common.images import load_label, reader_of
from workflow_scripts.records.run_columns import SURFACE
from workflow_scripts.records.run_reader import ending_of, label_values, read_cases


def surface_dice(
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    spacing: tuple[float, ...],
    tolerance: float,
) -> float:
    """Return the NSD of two masks (z, y, x); `spacing` and `tolerance` in mm or both in pixels.

    It is NaN if both masks are empty (like nnU-Net's Dice) and 0 if one is. For a single slice,
    outlines are compared instead of surfaces.
    """
    if reference.shape[0] == 1:
        reference, prediction, spacing = reference[0], prediction[0], spacing[1:]
    if not reference.any() and not prediction.any():
        return math.nan
    if not reference.any() or not prediction.any():
        return 0.0
    distances = compute_surface_distances(reference, prediction, spacing)
    return float(compute_surface_dice_at_tolerance(distances, tolerance))


def measure_run(run_json: Path, raw: Path, tolerance: float | None) -> pd.DataFrame:
    """Return one row per validation case and label (`SURFACE`), in the order of summary.json.

    Images are read with nnU-Net's reader. Voxels that are ignored in the reference count as
    background in both images, so they do not contribute, as in nnU-Net's Dice.

    Args:
        run_json: path of the run's record.
        raw: folder of the dataset in nnU-Net's raw format.
        tolerance: in mm, or in pixels if nnU-Net's reader knows no spacing (PNG, BMP, 2D TIFF);
            with None the NSD is missing and no image is read.

    Raises:
        UserError: an image is missing, cannot be read, or does not fit its reference.
    """
    record = read_json(run_json, "train this fold again")
    ending = ending_of(record)
    table = read_cases(run_json.with_name("summary.json"), record["label_names"], ending)
    table = table[["case", "label"]].assign(nsd=math.nan, tolerance_mm=None, tolerance_px=None)
    if tolerance is None:
        return table[SURFACE]
    reader = reader_of(raw)
    table["tolerance_px" if isinstance(reader, NaturalImage2DIO) else "tolerance_mm"] = tolerance
    ignored = read_json(raw / "dataset.json")["labels"].get("ignore")
    for case, rows in table.groupby("case", sort=False):
        path = Path(record["results_folder"], "validation", f"{case}{ending}")
        reference = load_label(reader, raw / "labelsTr" / path.name)
        prediction = load_label(reader, path)
        if reference.shape != prediction.shape:
            raise UserError(f"{path} has the shape {prediction.shape}, not that of its reference")
        counted = reference.values[0] != ignored
        for row, label in rows["label"].items():
            wanted, found = (
                np.isin(one.values[0], label_values(label)) & counted
                for one in (reference, prediction)
            )
            nsd = surface_dice(wanted, found, reference.spacing, tolerance)
            table.loc[row, "nsd"] = nsd
    return table[SURFACE]


if __name__ == "__main__":
    redirect(snakemake.log[0])
    given = snakemake.params.tolerance_mm
    write_csv(
        measure_run(
            run_json=Path(snakemake.input.run),
            raw=Path(snakemake.input.dataset).parent,
            tolerance=float(given) if given else None,
        ),
        Path(snakemake.output.surface),
    )
