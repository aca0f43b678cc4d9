"""Measure Dice and cost of inference of one model on a fold's validation cases."""

import math
from pathlib import Path

from workflow_scripts.common.console import announce, redirect
from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import read_json, write_json
from workflow_scripts.scale_space.inference import (
    InferenceSettings,
    ValidationCases,
    evaluate_scale,
)
from workflow_scripts.study.scale_grid import PLANNED


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


if __name__ == "__main__":
    redirect(snakemake.log[0])

    fold, scale = int(snakemake.wildcards.fold), snakemake.wildcards.scale
    record = read_json(Path(snakemake.input.run), "train this fold again")
    if scale == PLANNED:
        model, baked = Path(record["results_folder"]).parent, {}
        if not (model / "plans.json").is_file():
            raise UserError(f"{model} contains no model: train {record['arm']} first")
    else:
        model = Path(snakemake.input.model[0]).parent
        baked = read_json(model / "baked.json")
    params, splits_file = snakemake.params, Path(snakemake.input.splits)
    cases = read_json(splits_file, kind=list)[fold]["val"]
    measured = evaluate_scale(
        model,
        ValidationCases(fold, cases, splits_file.parent),
        InferenceSettings.of(params.training, params.energy, params.mirroring, snakemake.threads),
        summary_file=Path(snakemake.output.summary),
    )
    described = {
        key: record[key] for key in ("task", "arm", "fold", "seed", "cpu_model", "gpu_model")
    }
    described |= {"scale": baked.get("scale_factor"), **measured}
    described["change_by_scale"] = baked.get("change_by_scale", {}).get(str(fold))
    write_json(
        {key: None if _is_nan(value) else value for key, value in described.items()},
        Path(snakemake.output.evaluation),
    )
    announce(f"{record['task']} {record['arm']} at scale {scale}: Dice {measured['dice']:.3f}")
