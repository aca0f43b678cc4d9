"""Write a model that plain nnU-Net reads, with a card that says how it was made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from workflow_scripts.common import nnunet_setup
from workflow_scripts.common.console import announce, redirect
from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import read_json
from workflow_scripts.trainers.curricula.standalone.model_export import export_model

NOT_STATED = "not stated"


def describe_training(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the lines of a card about the trainings of a model (the `run.json` of its folds)."""
    first = records[0]
    facts = {
        "Study, arm, seed": f"{first['study']}, {first['arm']}, {first['seed']}",
        "Task": str(first["task"]),
        "Epochs, iterations each": f"{first['epochs']}, {first['iterations_per_epoch']}",
        "Software": ", ".join(f"{name} {number}" for name, number in first["versions"].items()),
    }
    for record in records:
        kwh, co2 = record["total_kwh"], record["total_kg_co2eq"]
        measured = kwh is not None and co2 is not None
        facts[f"Energy, fold {record['fold']}"] = (
            f"{kwh:.3g} kWh, {co2:.3g} kg CO2eq" if measured else "not measured"
        )
    return facts


def describe_data(
    dataset: Mapping[str, Any], registered: Mapping[str, str | None]
) -> dict[str, str]:
    """Return the licence and citation of the data for a card.

    Args:
        dataset: nnU-Net's `dataset.json`, which may keep what the data's authors wrote in it.
        registered: `licence` and `citation` by this workflow's tables; they come first.
    """
    licence = registered.get("licence") or dataset.get("licence") or dataset.get("license")
    citations = [registered.get("citation"), dataset.get("reference")]
    return {
        "Licence of the data": str(licence or NOT_STATED),
        "Cite for the data": "; ".join(map(str, filter(None, citations))) or NOT_STATED,
    }


if __name__ == "__main__":
    redirect(snakemake.log[0])

    nnunet_setup.configure(processes=1)

    registered = dict(snakemake.params.registered)
    if snakemake.params.data_set:
        journal = yaml.safe_load(Path(snakemake.params.register).read_text(encoding="utf-8"))
        known = journal[snakemake.params.data_set]
        registered = {"licence": known["licence"], "citation": known["where"]}
    records = [read_json(Path(path), "train this fold again") for path in snakemake.input.runs]
    model = Path(records[0]["results_folder"]).parent
    facts = describe_training(records)
    facts |= describe_data(read_json(model / "dataset.json", "train again"), registered)
    try:
        archive = export_model(
            model,
            Path(snakemake.output.card).parents[2],
            [str(record["fold"]) for record in records],
            facts,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    announce(f"To install it: nnUNetv2_install_pretrained_model_from_zip {archive}")
