"""Preprocess a task for one configuration and list what is there."""

import json
from pathlib import Path
from typing import Any

from log import UserError, redirect


def preprocess_task(dataset: str, plans: str, configuration: str, processes: int) -> dict[str, Any]:
    """Run nnU-Net's preprocessor and return the manifest of its output.

    Args:
        dataset, plans, configuration: nnU-Net's names.
        processes: cases that are resampled at once; each needs memory.

    Raises:
        UserError: nnU-Net planned no such configuration, or left a case out.
    """
    import nnunet

    nnunet.configure(processes)
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

    content = json.loads((nnunet.PREPROCESSED / dataset / f"{plans}.json").read_text())
    if configuration not in content["configurations"]:
        raise UserError(
            f"planning.configuration is {configuration}, but nnU-Net planned only "
            f"{', '.join(sorted(content['configurations']))} for {dataset}"
        )
    preprocess_dataset(
        nnunet.dataset_number(dataset), plans, (configuration,), num_processes=(processes,)
    )
    identifier = content["configurations"][configuration]["data_identifier"]
    return describe_preprocessed(
        nnunet.PREPROCESSED / dataset / identifier,
        nnunet.RAW / dataset,
        nnunet.json_hash(content),
    )


def describe_preprocessed(folder: Path, raw: Path, plans_hash: str) -> dict[str, Any]:
    """Return the manifest: plans hash, and per case the bytes of its files.

    Raises:
        UserError: a labelled case of `raw` has no preprocessed files.
    """
    ending = json.loads((raw / "dataset.json").read_text())["file_ending"]
    cases: dict[str, dict[str, int]] = {}
    for label in sorted((raw / "labelsTr").glob(f"*{ending}")):
        case = label.name[: -len(ending)]
        files = sorted(p for p in folder.glob(f"{case}*") if p.name[len(case)] in "._")
        cases[case] = {path.name: path.stat().st_size for path in files}
    missing = [case for case, files in cases.items() if len(files) < 3]
    if missing:
        raise UserError(
            f"{folder}: nnU-Net's preprocessing left out {len(missing)} of {len(cases)} cases, the "
            f"first is {missing[0]}; see the rule's log, and give it more memory or fewer threads"
        )
    return {"data_identifier": folder.name, "plans_hash": plans_hash, "cases": cases}


if __name__ == "__main__":
    redirect(snakemake.log[0])
    import nnunet

    manifest = preprocess_task(
        dataset=snakemake.wildcards.dataset,
        plans=snakemake.params.plans,
        configuration=snakemake.params.configuration,
        processes=snakemake.threads,
    )
    nnunet.write_json(manifest, Path(snakemake.output.manifest))
