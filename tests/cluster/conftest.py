"""One real Slurm, one prepared task, and studies that are disturbed at the same time."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from helpers.faults_on_slurm import FAULTS
from helpers.slurm_lab import Study, account, why_not, write_lab_profile
from helpers.tree import copy_tree
from workflow_scripts.common.formatting import pipe_table

PREPROCESSED = "resources/nnUNet_preprocessed/Dataset099_BrainTissue"
DATA = [
    "plans",
    f"{PREPROCESSED}/nnUNetPlans_3d_fullres.manifest.json",
    f"{PREPROCESSED}/splits_final.json",
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A copy of the workflow, with a profile as a lab would fill it in."""
    if reason := why_not():
        pytest.skip(reason)
    folder = copy_tree(tmp_path_factory.mktemp("cluster"))
    write_lab_profile(folder)
    return folder


@pytest.fixture(scope="session")
def calm(folder):
    """An undisturbed study through the profile; its training has finished, the rest is running.

    A separate run prepares its data, because files that one run of Snakemake is going to make are
    locked for all other runs until it ends.
    """
    study = Study(folder, "calm")
    assert study.start(targets=DATA).finish() == 0, study.said[-4000:]
    study.start(targets=[])
    try:
        until = time.monotonic() + 600
        while not any(entry.get("phase") == "end of training" for entry in study.ledger()):
            assert study.process.poll() is None, study.said[-4000:]
            assert time.monotonic() < until, study.said[-4000:]
            time.sleep(0.5)
        yield study
    finally:
        if study.process.poll() is None:
            study.kill_head()


@pytest.fixture(scope="session")
def disturbed(calm):
    """Map each fault to its study and Slurm's report, or to the exception that it raised.

    `FAULT_TABLE` names the file to which the table of docs/results/reliability.md is written.
    """
    done = [entry for entry in calm.ledger() if entry.get("phase") == "training"]
    seconds = sum(e["seconds"] for e in done) / sum(e["iterations"] for e in done)
    results = {}
    with ThreadPoolExecutor(len(FAULTS)) as pool:
        futures = {
            name: pool.submit(fault, calm.folder, name, seconds) for name, fault in FAULTS.items()
        }
        for name, future in futures.items():
            try:
                results[name] = future.result()
            except Exception as error:
                results[name] = error
    if path := os.environ.get("FAULT_TABLE"):
        rows = [
            row_of(FAULTS[name].__doc__, *result)
            for name, result in results.items()
            if not isinstance(result, Exception)
        ]
        Path(path).write_text(pipe_table(pd.DataFrame(rows)) + "\n")
    return results


def row_of(fault, study, what):
    """Return a row of the fault table."""
    found = account(study)
    silent = "without a message" in found["ends"]
    lost = "part of the epoch" if silent else "none" if found["exact"] else "unknown"
    return {
        "fault": fault.rstrip("."),
        "what happened": f"{what}; attempts ended: {', '.join(map(str, found['ends']))}",
        "epochs lost": f"{found['epochs_repeated']} (iterations: {lost})",
        "energy rows kept": f"{found['energy_rows']} of {found['energy_rows_expected']}",
    }
