"""Measure Dice of a hypernetwork's weights for one scale factor in the network of another one."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workflow_scripts.common import nnunet_setup
from workflow_scripts.common.console import announce, redirect
from workflow_scripts.common.files import read_json, write_json
from workflow_scripts.scale_space.baking import bake_model
from workflow_scripts.scale_space.inference import (
    InferenceSettings,
    ValidationCases,
    evaluate_scale,
)


def evaluate_transfer(
    training: Path,
    parameters: Mapping[str, Any],
    scales: tuple[float, float],
    validated: ValidationCases,
    settings: InferenceSettings,
) -> dict[str, Any]:
    """Return Dice and number of cases of the model with weights of another scale factor.

    The model is baked into a temporary folder and evaluated like any other.

    Args:
        training: nnU-Net's fold folder of the finished training.
        parameters: parameters of the arm.
        scales: scale factor of the weights, and that of the network that uses them.
        validated: cases to predict.
        settings: settings of the prediction.
    """
    weights_scale, network_scale = scales
    with tempfile.TemporaryDirectory() as name:
        model = Path(name)
        folds = {validated.fold: training}
        bake_model(folds, parameters, network_scale, model, weights_scale)
        measured = evaluate_scale(model, validated, settings, model / "summary.json")
    return {
        "weights_scale": weights_scale,
        "network_scale": network_scale,
        "dice": measured["dice"],
        "cases": measured["cases"],
    }


def some_cases(cases: Sequence[str], number: int | None) -> list[str]:
    """Return `number` cases, evenly spread over the list; all for None or if there are not more."""
    if number is None or number >= len(cases):
        return list(cases)
    return [cases[place * len(cases) // number] for place in range(number)]


if __name__ == "__main__":
    redirect(snakemake.log[0])

    nnunet_setup.configure(processes=max(1, snakemake.threads // 2))

    fold, splits_file = int(snakemake.wildcards.fold), Path(snakemake.input.splits)
    record = read_json(Path(snakemake.input.run), "train this fold again")
    params = snakemake.params
    cases = some_cases(read_json(splits_file, kind=list)[fold]["val"], params.cases)
    found = evaluate_transfer(
        Path(record["results_folder"]),
        params.parameters,
        (float(snakemake.wildcards.weights), float(snakemake.wildcards.scale)),
        ValidationCases(fold, cases, splits_file.parent),
        InferenceSettings.of(params.training, params.energy, params.mirroring, snakemake.threads),
    )
    described = {key: record[key] for key in ("task", "arm", "fold")} | found
    write_json(described, Path(snakemake.output.evaluation))
    announce(
        f"{record['task']} {record['arm']}: weights of {found['weights_scale']:g} in the network "
        f"of {found['network_scale']:g}: Dice {found['dice']:.3f}"
    )
