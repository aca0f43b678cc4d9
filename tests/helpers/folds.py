"""Trainings of the tiny task by `train_fold`, in separate processes like Snakemake's jobs."""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import pandas as pd

from helpers.processes import Forked, forked_pools
from workflow_scripts.common import nnunet_setup
from workflow_scripts.common.errors import UserError

ROOT = Path(__file__).parents[2]
PYTHON = Path(sys.executable)
PROGRESSIVE = "nnUNetTrainerProgressivePatch"
EPOCHS, ITERATIONS = 8, 6
OUTPUTS = {name: f"{name}.csv" for name in ("epochs", "stages", "energy")} | {
    name: f"{name}.json" for name in ("run", "summary")
}


PATHS = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
"""`PYTHONPATH` of a process that makes calls."""


def make_calls(spec):
    """Run the code `before` of a spec, then make its calls, and record the result of each."""
    nnunet_setup.RAW, nnunet_setup.PREPROCESSED = Path(spec["raw"]), Path(spec["preprocessed"])
    exec(spec["before"], {})
    with contextlib.nullcontext() if spec["spawning"] else forked_pools():
        for call in spec["calls"]:
            try:
                train(call)
                said = "ok"
            except UserError as error:
                said = f"UserError: {error}"
            with Path(spec["said"]).open("a") as file:
                file.write(json.dumps(said) + "\n")


def train(call):
    """Call `train_fold` with a result of `Folds.call`, directly or read back from JSON."""
    from workflow_scripts.study.settings import RunSettings
    from workflow_scripts.study.specification import RunSpec
    from workflow_scripts.training.fold_training import Files, train_fold

    files = Files(
        **{name: Path(call[name]) for name in ("results", "plans", "splits")},
        outputs={name: Path(path) for name, path in call["outputs"].items()},
    )
    settings = RunSettings.of(call["training"], call["energy"], call["mirroring"], threads=1)
    train_fold(RunSpec(**call["run"]), settings, files, call.get("stop_after_minutes"))


class Folds:
    """Calls of `train_fold` in separate processes, like Snakemake's jobs.

    `log` is the output of the last process of `run`.
    """

    def __init__(self, prepared, root):
        self.raw, self.preprocessed = prepared
        self.root = root

    def call(self, study, outputs=None, parameters=None, **settings):
        folder = self.preprocessed / "Dataset998_Tiny"
        outputs = self.root / (outputs or study)
        return {
            "run": {
                "study": study,
                "task": "Task98_Tiny",
                "dataset": "Dataset998_Tiny",
                "arm": "progressive",
                "trainer": PROGRESSIVE,
                "fold": 0,
                "configuration": "3d_fullres",
                "plans": "tinyPlans",
                "parameters": parameters or {},
            },
            "training": {
                "epochs": EPOCHS,
                "iterations_per_epoch": ITERATIONS,
                "validation_iterations_per_epoch": 1,
                "seed": 3,
                "device": "cpu",
                "precision": "fp32",
                "checkpoint_minutes": 0,
                "deterministic": False,
                "lease_minutes": 5,
                "wait_minutes": 30,
                **settings,
            },
            "energy": {"country": "DEU", "tracking_mode": "process", "pue": 1.0},
            "mirroring": False,
            "results": str(self.root / study / "nnunet"),
            "plans": str(folder / "tinyPlans.json"),
            "splits": str(folder / "splits_final.json"),
            "outputs": {name: str(outputs / file) for name, file in OUTPUTS.items()},
        }

    def start(self, *calls, before="", spawning=False):
        """Start a process that runs the code `before`, then makes the calls.

        nnU-Net's pools fork their worker. With `spawning`, they spawn it, as they do by default.
        """
        said = self.root / f"calls_{time.monotonic_ns()}.said"
        spec = {"raw": str(self.raw), "preprocessed": str(self.preprocessed)}
        spec |= {"said": str(said), "before": before, "calls": calls}
        spec["spawning"] = spawning
        process = Forked(make_calls, spec, output=said.with_suffix(".log"))
        return process, said

    def run(self, *calls, before=""):
        process, said = self.start(*calls, before=before)
        try:
            process.wait(timeout=400)
        finally:
            kill_group(process)
        self.log = said.with_suffix(".log").read_text()
        assert process.returncode == 0, self.log[-3000:]
        return [json.loads(line) for line in said.read_text().splitlines()]

    def fold(self, study):
        (path,) = (self.root / study / "nnunet").glob("*/*/fold_0")
        return path

    def ledger(self, study):
        lines = (self.fold(study) / "ledger.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def read(self, outputs, name):
        path = self.root / outputs / OUTPUTS[name]
        return pd.read_csv(path) if path.suffix == ".csv" else json.loads(path.read_text())


def kill_group(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
