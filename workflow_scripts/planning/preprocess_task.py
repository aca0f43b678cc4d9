"""Preprocess a task for one configuration and list the resulting files."""

import math
from pathlib import Path
from typing import Any

import psutil

from workflow_scripts.common import nnunet_setup
from workflow_scripts.common.console import redirect
from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import read_json, write_json
from workflow_scripts.common.formatting import DISK, in_unit
from workflow_scripts.common.hashing import json_hash
from workflow_scripts.common.worker_pools import watched_pools
from workflow_scripts.planning.plan_overrides import why_planned
from workflow_scripts.study.data_changes import (
    RECORD,
    changed_cases,
    digests_of_preprocessed,
    folds_of,
    write_record,
)

FILES = (".b2nd", "_seg.b2nd", ".pkl")
"""Endings of the files that nnU-Net 2.8.1 keeps per case (`nnUNetDatasetBlosc2`)."""
BYTES_PER_VOXEL = 16
"""Minimum memory of preprocessing, in float32: image, resampled image, and a copy of each.
`config/tables/job_resources.tsv` requests twice as much."""


def preprocess_task(dataset: str, plans: str, configuration: str, processes: int) -> dict[str, Any]:
    """Run nnU-Net's preprocessor and return the manifest of its output.

    Args:
        dataset, plans, configuration: nnU-Net's names.
        processes: number of cases resampled in parallel; each needs memory.

    Raises:
        UserError: nnU-Net planned no such configuration, left out a case, or needs more memory
            than this machine has.
    """
    nnunet_setup.configure(processes)
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

    content = read_json(nnunet_setup.PREPROCESSED / dataset / f"{plans}.json")
    if configuration not in content["configurations"]:
        raise UserError(
            f"planning.configuration is {configuration}, but nnU-Net planned only "
            f"{', '.join(sorted(content['configurations']))} for {dataset}{why_planned(content)}"
        )
    check_memory(read_json(nnunet_setup.PREPROCESSED / dataset / "dataset_fingerprint.json"))
    number = nnunet_setup.dataset_number(dataset)
    with nnunet_setup.pools_on(processes), watched_pools("preprocesses the cases"):
        preprocess_dataset(number, plans, (configuration,), num_processes=(processes,))
    identifier = content["configurations"][configuration]["data_identifier"]
    return describe_preprocessed(
        nnunet_setup.PREPROCESSED / dataset / identifier,
        nnunet_setup.RAW / dataset,
        json_hash(content),
    )


def check_memory(fingerprint: dict[str, Any]) -> None:
    """Check that this machine has enough memory for one process to preprocess the largest case.

    Raises:
        UserError: it does not; the system would kill the process without an error message.
    """
    channels = len(fingerprint["foreground_intensity_properties_per_channel"])
    voxels = max(map(math.prod, fingerprint["shapes_after_crop"])) * channels
    needed, total = voxels * BYTES_PER_VOXEL, psutil.virtual_memory().total
    if needed > total:
        raise UserError(
            f"the largest case has {voxels / 1e6:.0f} megavoxels (all channels). Preprocessing it "
            f"takes about {in_unit(needed, DISK)} of memory, but this machine has "
            f"{in_unit(total, DISK)}. Use a machine with more memory, or crop the case"
        )


def describe_preprocessed(folder: Path, raw: Path, plans_hash: str) -> dict[str, Any]:
    """Return the manifest: hash of the plans, and the file sizes of each case in bytes.

    Raises:
        UserError: a labelled case of `raw` has no preprocessed files.
    """
    ending = read_json(raw / "dataset.json")["file_ending"]
    cases: dict[str, dict[str, int]] = {}
    for label in sorted((raw / "labelsTr").glob(f"*{ending}")):
        case = label.name[: -len(ending)]
        files = [folder / f"{case}{kind}" for kind in FILES]
        cases[case] = {path.name: path.stat().st_size for path in files if path.is_file()}
    missing = [case for case, files in cases.items() if len(files) < len(FILES)]
    if missing:
        raise UserError(
            f"{folder}: nnU-Net's preprocessing left out {len(missing)} of {len(cases)} cases, the "
            f"first is {missing[0]}; see the rule's log, and give it more memory or fewer threads"
        )
    return {"data_identifier": folder.name, "plans_hash": plans_hash, "cases": cases}


def record_data(dataset: str, study: str, threads: int) -> None:
    """Record the data that will be preprocessed.

    Raises:
        UserError: the study has trainings on other data; nothing of it has been touched.
    """
    raw, folder = nnunet_setup.RAW / dataset, nnunet_setup.PREPROCESSED / dataset
    write_record(raw, folder / RECORD, threads)
    now = digests_of_preprocessed(folder)
    for fold in folds_of(study, dataset):
        if cases := changed_cases(fold, now):
            raise UserError(
                f"{fold} was trained on other data: {cases[0]} and {len(cases) - 1} more cases "
                "differ. Choose another `study` name, or remove the task's results "
                "(docs/how-to/own_dataset.md#when-the-data-change)"
            )


if __name__ == "__main__":
    redirect(snakemake.log[0])

    record_data(snakemake.wildcards.dataset, snakemake.config["study"], snakemake.threads)
    manifest = preprocess_task(
        dataset=snakemake.wildcards.dataset,
        plans=snakemake.params.plans,
        configuration=snakemake.params.configuration,
        processes=snakemake.threads,
    )
    write_json(manifest, Path(snakemake.output.manifest))
