"""A study so small that its complete run takes less than a minute, in its own folder."""

import json
import os
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest

from helpers.quick_study import quick_snakemake
from helpers.tiny_study import CONFIG, TASK, TRAINERS
from helpers.tree import copy_tree, snakemake, start, write_config


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """The finished study: folder, config, the command's arguments and the output of its run.

    The workflow is a clone that tests may change; its working directory is another folder.
    """
    clone = copy_tree(tmp_path_factory.mktemp("clone"))
    folder = tmp_path_factory.mktemp("study")
    workflow = ["-s", clone / "Snakefile"]
    config = write_config(clone, "tiny", CONFIG)
    arguments = [*workflow, "--cores", "2", "--configfile", config]
    run = quick_snakemake(folder, *arguments)
    assert run.returncode == 0, run.stdout + run.stderr
    return SimpleNamespace(
        clone=clone,
        folder=folder,
        workflow=workflow,
        config=CONFIG,
        arguments=arguments,
        run=run,
        made={path.name for path in folder.iterdir()},
        results=folder / "results/tiny",
    )


def children(pid):
    """Return the child processes of `pid`."""
    run = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True)
    pairs = [line.split() for line in run.stdout.splitlines()]
    return [int(child) for child, parent in pairs if int(parent) == pid]


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(scope="session")
def killed(study):
    """A training killed twice: first its own process, then Snakemake with all its children.

    Attributes: the three runs, and the epochs in the ledger after each kill.
    """
    config = {
        **study.config,
        "study": "killed",
        "arms": {"progressive": {"trainer": TRAINERS["progressive"]}},
        "reference_arm": "progressive",
    }
    longer = {"epochs": 10, "iterations_per_epoch": 20}
    config["training"] = {**config["training"], **longer}
    path = write_config(study.folder, "killed", config)
    run_folder = study.folder / f"results/killed/runs/{TASK}/progressive/fold_0"
    record = json.loads((study.results / f"runs/{TASK}/progressive/fold_0/run.json").read_text())
    ledger = study.folder / record["results_folder"].replace("tiny", "killed") / "ledger.jsonl"
    target = (run_folder / "run.json").relative_to(study.folder)
    arguments = [*study.workflow, "--cores", "1", "--configfile", path, "--", target]

    def start_and_wait(epochs):
        process = start(study.folder, *arguments)
        limit = time.monotonic() + 180
        while sum('"phase": "training"' in line for line in lines(ledger)) < epochs:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < limit
            time.sleep(0.05)
        return process

    def trained():
        return [line for line in lines(ledger) if '"phase": "training"' in line]

    state = SimpleNamespace(
        run_folder=run_folder, ledger=ledger, config=config, arguments=arguments
    )
    process = start_and_wait(epochs=2)
    (training,) = children(process.pid)
    try:
        os.kill(training, signal.SIGKILL)
        process.wait(timeout=60)
    finally:
        end_group(process.pid)
    out, err = process.communicate()
    state.first = SimpleNamespace(returncode=process.returncode, stdout=out, stderr=err)
    state.after_first = trained()

    process = start_and_wait(epochs=len(state.after_first) + 2)
    end_group(process.pid)
    process.communicate()
    state.after_second = trained()
    state.refused = snakemake(study.folder, *arguments)
    state.unlocked = snakemake(study.folder, "--unlock", *arguments)
    state.last = snakemake(study.folder, *arguments)
    return state


def end_group(pid):
    """Kill Snakemake's process group, because a training's loaders outlive a killed training."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
