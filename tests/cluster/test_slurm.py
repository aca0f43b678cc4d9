"""Studies through profiles/slurm on a real Slurm, undisturbed and disturbed."""

import json
import re
import shlex

import pandas as pd
import pytest

from helpers.faults_on_slurm import FAULTS
from helpers.slurm_lab import ARM, EPOCHS, ROOT, TASK, account, slurm
from helpers.tree import snakemake

SCHEDULE = ["epoch", "stage", "patch_size", "batch_size", "lr"]
ENDS = {
    "cancelled": ["SIGTERM", "finished"],
    "timed_out": ["SIGTERM", "finished"],
    "killed": ["without a message", "finished"],
    "beheaded": ["finished"],
    "restarted": ["finished"],
    "two_at_once": ["finished"],
}


@pytest.fixture(params=FAULTS)
def fault(request, disturbed):
    """Name and study of a fault."""
    result = disturbed[request.param]
    if isinstance(result, Exception):
        raise result
    return request.param, result[0]


def test_a_study_disturbed_is_complete(fault, calm):
    _, study = fault
    epochs, wanted = (pd.read_csv(each.runs / "epochs.csv") for each in (study, calm))
    assert len(epochs) == EPOCHS
    assert epochs[SCHEDULE].equals(wanted[SCHEDULE]), "same schedule as the undisturbed study"
    record = json.loads((study.runs / "run.json").read_text())
    assert record["cases"] == 2
    assert record["attempts"] == len(study.attempts())


def test_nothing_beyond_the_last_checkpoint_is_lost(fault):
    name, study = fault
    found = account(study)
    # Memory may run out between the end of an epoch and its checkpoint; then that epoch is lost.
    assert found["epochs_repeated"] <= (name == "starved")
    assert found["exact"]
    if name in ENDS:
        assert found["ends"] == ENDS[name]


def test_no_energy_row_is_lost(fault):
    _, study = fault
    found, energy = account(study), pd.read_csv(study.runs / "energy.csv")
    assert found["attempts_with_energy"] == found["attempts_metered"]
    assert found["energy_rows"] == found["energy_rows_expected"]
    record = json.loads((study.runs / "run.json").read_text())
    assert record["total_kwh"] == pytest.approx(energy["kwh"].sum())


def slurm_logs(study):
    """Return the Slurm logs of the study's failed trainings."""
    folder = study.folder / "logs/slurm/rule_train_fold"
    jobs = [attempt["job"] for attempt in study.attempts()]
    return [path.read_text() for job in jobs for path in folder.glob(f"*/{job}.log")]


def test_slices_end_by_themselves_before_the_limit(disturbed):
    study, _ = disturbed["sliced"]
    *slices, last = account(study)["ends"]
    assert len(slices) >= 1
    assert set(slices) == {"time limit"}
    assert last == "finished"
    assert any("before its time limit" in text for text in slurm_logs(study))


def memory_of(job):
    """Return the memory that a job asked for, in MB."""
    text = slurm("scontrol", "show", "job", job, "--oneliner").stdout
    number, unit = re.search(r"MinMemoryNode=([\d.]+)([MG])", text).groups()
    return float(number) * {"M": 1, "G": 1024}[unit]


def test_after_a_kill_more_memory_is_asked_for_and_the_kill_is_told(disturbed):
    study, _ = disturbed["killed"]
    asked = [memory_of(attempt["job"]) for attempt in study.attempts()]
    assert asked[1] == pytest.approx(1.5 * asked[0], rel=0.01)
    assert "without a message" in json.dumps(study.ledger())


def test_the_whole_study_went_through_slurm(calm, disturbed):
    assert calm.finish() == 0, calm.said[-6000:]
    for name in ("runs.csv", "comparison.md", "significance.csv", "claims.md"):
        assert (calm.folder / "results/calm/tables" / name).is_file()
    submitted = calm.said.count("has been submitted with SLURM jobid")
    rules = ("extract", "convert", "fingerprint", "preprocess", "train", "surface", "balance")
    assert submitted == len(rules) + 1, "plus predictions; all other rules run locally"
    jobs = slurm("squeue", "--noheader", "--states=all", "--format=%k %b %C").stdout
    assert f"rule_train_fold_wildcards_{TASK}_{ARM}_0" in jobs


def test_the_commands_of_the_page_work_as_written(calm, disturbed):
    """Except for the marked ones; with the lab's profile and the small study, not the paper's."""
    assert calm.finish() == 0, calm.said[-6000:]
    page = (ROOT / "docs/how-to/slurm.md").read_text()
    blocks = re.findall(r"(<!-- not run: [^\n]+ -->\n)?```bash\n(.+?)```", page, re.DOTALL)
    commands = [line for mark, text in blocks if not mark for line in text.splitlines()]
    assert len(commands) >= 5
    for line in commands:
        program, *words = shlex.split(line)
        assert program == ".venv/bin/snakemake"
        place = words.index("profiles/slurm") + 1
        words = [*words[:place], "--profile", "lab", *words[place:]]
        words = [calm.config if word == "config/studies/paper.yaml" else word for word in words]
        run = snakemake(calm.folder, *words)
        assert run.returncode == 0, f"{line}\n{run.stdout}{run.stderr}"
    assert (calm.folder / "results/calm/forecast/forecast.md").is_file()
