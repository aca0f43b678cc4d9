"""Studies on a real Slurm: start them, disturb them, and read the effects from their ledgers."""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pandas as pd
import yaml

from helpers.tree import command, write_config

TASK, ARM = "Task99_BrainTissue", "progressive"
ROOT = Path(__file__).resolve().parents[2]
SLURM_UP = Path(os.environ.get("SLURMLAB", ROOT.parent / "shared/cluster")) / "slurm-up.sh"
STATE = Path(os.environ.get("SLURMLAB_DIR", "/var/lib/slurmlab"))
CONF = Path("/etc/slurm/slurm.conf")
EPOCHS = 8
CONFIG = {
    "study": "calm",
    "tasks": [TASK],
    "folds": [0],
    "arms": {ARM: {"trainer": "nnUNetTrainerProgressivePatch"}},
    "reference_arm": ARM,
    "planning": {
        "overrides": {
            "all": {"patch_size": [16, 24, 16], "batch_size": 2, "features_per_stage": [4, 8, 8]}
        }
    },
    "training": {
        "epochs": EPOCHS,
        "iterations_per_epoch": 40,
        "validation_iterations_per_epoch": 2,
        "device": "cpu",
        "precision": "fp32",
        "checkpoint_minutes": 0,
        "threads": 1,
    },
    "validation": {"mirroring": False},
    "energy": {"tracking_mode": "process"},
    "demo_task": {"cases": 6, "seed": 1},
}
# A lab's settings, but with a GPU request although training is on the CPU, and faster polling.
LAB = {
    "default-resources": {
        "slurm_partition": "cpu",
        "mem_mb": 2000,
        "runtime": 30,
        "disk_mb": 1000,
    },
    "set-resources": {"train_fold": {"slurm_partition": "gpu", "gpu": 1}},
    "set-threads": dict.fromkeys(
        ("extract_task", "convert_task", "fingerprint_task", "preprocess_task"), 2
    ),
    "slurm-status-command": "squeue",
    "slurm-init-seconds-before-status-checks": 1,
    "latency-wait": 5,
}

# Two Snakemakes in one folder that end in the same second race to remove its locks
# (docs/how-to/slurm.md). The work of both is done, so repeating the command finds nothing to do.
# One that starts at that moment has no folder to write its locks to.
STUMBLED = re.compile(
    r"(\(100%\) done\n(?!.*\nBuilding DAG).*_delete_locks"
    r"|in _write_locks\n(?!.*\nBuilding DAG)).*\Z",
    re.DOTALL,
)


def why_not():
    """Return why no study can run here, or None."""
    try:
        answer = slurm("sinfo", "--noheader", "--format=%T", "--partition=gpu", timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "no Slurm here (no answer from sinfo)"
    states = set(answer.stdout.split())
    if not states & {"idle", "mixed", "allocated"}:
        return f"Slurm has no usable partition gpu here: {answer.stdout or answer.stderr}"
    return None


def slurm(*arguments, timeout=60):
    """Run a Slurm command."""
    return subprocess.run(arguments, capture_output=True, text=True, timeout=timeout, check=False)


@dataclass
class Study:
    """One study in a folder that others may share: its Snakemake, its ledger, its files."""

    folder: Path
    name: str
    changes: dict = field(default_factory=dict)
    extra: tuple = ()
    process: subprocess.Popen | None = None
    started: tuple = ()

    def __post_init__(self):
        config = {**CONFIG, "study": self.name}
        self.config = write_config(self.folder, self.name, config, **self.changes)

    @property
    def said(self):
        """Output of all its Snakemake runs."""
        return (self.folder / f"{self.name}.log").read_text()

    @property
    def runs(self):
        """Folder of the run's files."""
        return self.folder / f"results/{self.name}/runs/{TASK}/{ARM}/fold_0"

    def arguments(self, *more):
        profiles = ("--profile", "profiles/slurm", "--profile", "lab")
        return (*profiles, "--configfile", self.config, *self.extra, *more)

    def start(self, *more, targets=None):
        """Start Snakemake for the training alone, or for `targets` (empty: the whole study)."""
        self.started = (more, targets)
        if targets is None:
            targets = [(self.runs / "run.json").relative_to(self.folder)]
        with (self.folder / f"{self.name}.log").open("a") as log:
            self.process = subprocess.Popen(
                command(*self.arguments(*more), "--", *targets),
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        return self

    def unlock(self):
        done = subprocess.run(
            command(*self.arguments("--unlock")), cwd=self.folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    def finish(self, seconds=1200):
        """Wait for Snakemake to end; return its exit code."""
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill_head()
            queue = slurm("squeue", "--states=all", "--format=%i %T %r %M").stdout
            raise AssertionError(f"{self.name} hangs\n{self.said[-4000:]}\n{queue}") from None
        if code != 0 and STUMBLED.search(self.said):
            more, targets = self.started
            return self.start(*more, targets=targets).finish(seconds)
        return code

    def kill_head(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def fold(self):
        (path,) = (self.folder / f"results/{self.name}/nnunet/{ARM}").glob("*/*/fold_0")
        return path

    def ledger(self):
        """Return all complete entries of the ledger so far."""
        try:
            lines = (self.fold / "ledger.jsonl").read_text().splitlines()
        except (ValueError, FileNotFoundError):
            return []
        entries = []
        for line in lines:
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return entries

    def attempts(self):
        return [entry for entry in self.ledger() if entry["entry"] == "attempt"]

    def wait_for_epochs(self, more=2, seconds=1200):
        """Wait until the current attempt has trained some epochs; return its Slurm job."""
        known, until = len(self.attempts()), time.monotonic() + seconds
        while time.monotonic() < until:
            assert self.process.poll() is None, f"{self.name} ended\n{self.said[-4000:]}"
            entries = self.ledger()
            attempts = [entry for entry in entries if entry["entry"] == "attempt"]
            if len(attempts) >= max(known, 1):
                number = attempts[-1]["attempt"]
                done = [e for e in entries if e.get("phase") == "training" and not e.get("partial")]
                if sum(entry["attempt"] == number for entry in done) >= more:
                    return attempts[-1]["job"]
            time.sleep(0.2)
        raise AssertionError(f"{self.name} does not train\n{self.said[-4000:]}")

    def wait_for_checkpoint(self):
        """Wait until a checkpoint contains all finished epochs; it follows their entries."""
        ledger, checkpoint = self.fold / "ledger.jsonl", self.fold / "checkpoint_latest.pth"
        while not checkpoint.exists() or checkpoint.stat().st_mtime < ledger.stat().st_mtime:
            time.sleep(0.02)

    def pid_of_training(self):
        """Return the PID of the process that holds the lease."""
        (lease,) = (self.fold / "lease").glob("*.json")
        return json.loads(lease.read_text())["pid"]


def state_of(job):
    return slurm("squeue", "--noheader", "--states=all", "--format=%T", "--job", job).stdout.strip()


def wait_for_state(job, *states, seconds=300):
    """Wait until a job is in one of the states; return it."""
    until = time.monotonic() + seconds
    while (state := state_of(job)) not in states:
        assert time.monotonic() < until, f"job {job} is {state}, not {states}"
        time.sleep(0.5)
    return state


def account(study):
    """Return the cost of a study's disturbance, from its ledger and its tables.

    attempts: number of attempts.
    attempts_metered: attempts that must have energy: all but those killed before a first reading.
    ends: how each attempt ended.
    epochs_repeated: epochs that were finished, and trained again.
    exact: whether each attempt with a recorded end was continued from its very last iteration.
    energy_rows: rows of energy.csv with energy.
    energy_rows_expected: pieces of work in the ledger, by attempt, phase and stage.
    attempts_with_energy: attempts that have energy.
    """
    entries, energy = study.ledger(), pd.read_csv(study.runs / "energy.csv")
    attempts = [entry for entry in entries if entry["entry"] == "attempt"]
    ends = {entry["attempt"]: entry["how"] for entry in entries if entry["entry"] == "end"}
    repeated, exact = 0, True
    for one, other in pairwise(attempts):
        number = one["attempt"]
        work = [e for e in entries if e.get("phase") == "training" and e["attempt"] == number]
        done = [entry["epoch"] for entry in work if not entry.get("partial")]
        repeated += sum(epoch >= other["resumed_at"] for epoch in done)
        if ends[number] != "without a message" and work and work[-1].get("partial"):
            last = work[-1]
            before = one["resumed_within"] if last["epoch"] == one["resumed_at"] else 0
            parts = [e["iterations"] for e in work if e["epoch"] == last["epoch"]]
            position = (last["epoch"], before + sum(parts))
            exact &= position == (other["resumed_at"], other["resumed_within"])
    metered = {entry["attempt"] for entry in entries if entry["entry"] == "work"}
    metered |= {number for number, how in ends.items() if how != "without a message"}
    paid = energy[energy["kwh"] > 0]["attempt"].unique()
    work = {
        (entry["attempt"], entry["phase"], entry.get("stage"))
        for entry in entries
        if entry["entry"] == "work"
    }
    return {
        "attempts": len(attempts),
        "attempts_metered": len(metered),
        "ends": [ends.get(attempt["attempt"]) for attempt in attempts],
        "epochs_repeated": repeated,
        "exact": exact,
        "energy_rows": int((energy["kwh"] > 0).sum()),
        "energy_rows_expected": len(work),
        "attempts_with_energy": len(set(paid) & {entry["attempt"] for entry in attempts}),
    }


def restart_slurmctld(pause):
    """Stop the controller, wait `pause` seconds, and restart it with the same settings."""
    pid = int((STATE / "run/slurmctld.pid").read_text())
    os.kill(pid, signal.SIGTERM)
    with contextlib.suppress(OSError):  # it may stay as a zombie
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.1)
    time.sleep(pause)
    node = re.search(r"CPUs=(\d+) RealMemory=(\d+)(?: Gres=gpu:(\d+))?", CONF.read_text())
    names = ("SLURMLAB_CPUS", "SLURMLAB_MEM_MB", "SLURMLAB_GPUS")
    same = dict(zip(names, (value or "0" for value in node.groups()), strict=True))
    subprocess.run(
        ["bash", SLURM_UP], env={**os.environ, **same}, check=True, capture_output=True, timeout=120
    )


def write_lab_profile(folder):
    (folder / "lab").mkdir()
    (folder / "lab/config.yaml").write_text(yaml.safe_dump(LAB))
