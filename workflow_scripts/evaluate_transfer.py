"""Dice of a hypernetwork's weights for one scale factor in the network of another one."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bake_model import bake_model
from evaluate_scale import evaluate_scale
from log import redirect, tell


def evaluate_transfer(
    fold: int,
    training: Path,
    parameters: Mapping[str, Any],
    weights_scale: float,
    network_scale: float,
    **evaluation: Any,
) -> dict[str, Any]:
    """Return Dice and number of cases of the model with weights of another scale factor.

    The model is baked as any other one, into a folder that is not kept, and evaluated as they are.

    Args:
        fold: number of the fold.
        training: nnU-Net's fold folder of the finished training.
        parameters: of the arm.
        weights_scale: scale factor that the weights are made for.
        network_scale: scale factor of the network that takes them.
        evaluation: further arguments of `evaluate_scale`.
    """
    with tempfile.TemporaryDirectory() as name:
        model = Path(name)
        bake_model({fold: training}, parameters, network_scale, model, weights_scale)
        measured = evaluate_scale(
            model=model, fold=fold, summary_file=model / "summary.json", **evaluation
        )
    return {
        "weights_scale": weights_scale,
        "network_scale": network_scale,
        "dice": measured["dice"],
        "cases": measured["cases"],
    }


def some_cases(cases: Sequence[str], number: int | None) -> list[str]:
    """Return as many cases, evenly spread over the list; for None, or if it is short, all."""
    if number is None or number >= len(cases):
        return list(cases)
    return [cases[place * len(cases) // number] for place in range(number)]


if __name__ == "__main__":
    redirect(snakemake.log[0])
    import json

    import nnunet

    nnunet.configure(processes=max(1, snakemake.threads // 2))
    from results import read_json

    fold, splits_file = int(snakemake.wildcards.fold), Path(snakemake.input.splits)
    record = read_json(Path(snakemake.input.run))
    validated = json.loads(splits_file.read_text())[fold]["val"]
    found = evaluate_transfer(
        fold=fold,
        training=Path(record["results_folder"]),
        parameters=snakemake.params.parameters,
        weights_scale=float(snakemake.wildcards.weights),
        network_scale=float(snakemake.wildcards.scale),
        cases=some_cases(validated, snakemake.params.cases),
        preprocessed=splits_file.parent,
        settings=snakemake.params.training,
        energy=snakemake.params.energy,
        mirroring=snakemake.params.mirroring,
        threads=snakemake.threads,
    )
    described = {key: record[key] for key in ("task", "arm", "fold")} | found
    nnunet.write_json(described, Path(snakemake.output.evaluation))
    tell(
        f"{record['task']} {record['arm']}: weights of {found['weights_scale']:g} in the network "
        f"of {found['network_scale']:g}: Dice {found['dice']:.3f}"
    )
