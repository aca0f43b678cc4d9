"""Trainings of the tiny task by `train_fold`, in processes of their own as Snakemake's jobs are."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
PYTHON = Path(sys.executable)
PROGRESSIVE = "nnUNetTrainerProgressivePatch"
DRIVER = """
import json, sys
from pathlib import Path

import nnunet
from log import UserError

if __name__ == "__main__":
    spec = json.loads(Path(sys.argv[1]).read_text())
    nnunet.RAW, nnunet.PREPROCESSED = Path(spec["raw"]), Path(spec["preprocessed"])
    exec(spec["before"])
    from train_fold import train_fold

    for number, call in enumerate(spec["calls"]):
        call = dict(call)
        paths = ("results", "plans_file", "splits_file")
        call |= {name: Path(call[name]) for name in paths}
        call["outputs"] = {name: Path(path) for name, path in call["outputs"].items()}
        try:
            train_fold(**call)
            said = "ok"
        except UserError as error:
            said = f"UserError: {error}"
        Path(spec["said"]).open("a").write(json.dumps(said) + "\\n")
"""
EPOCHS, ITERATIONS = 8, 6
OUTPUTS = {name: f"{name}.csv" for name in ("epochs", "stages", "energy")} | {
    name: f"{name}.json" for name in ("run", "summary")
}


class Folds:
    """Calls of `train_fold` in processes of their own, as Snakemake's jobs would be.

    `log` is what the last process of `run` printed.
    """

    def __init__(self, prepared, root):
        self.raw, self.preprocessed = prepared
        self.root = root
        (root / "driver.py").write_text(DRIVER)

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
            },
            "trainer_parameters": parameters or {},
            "settings": {
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
            "plans_file": str(folder / "tinyPlans.json"),
            "splits_file": str(folder / "splits_final.json"),
            "outputs": {name: str(outputs / file) for name, file in OUTPUTS.items()},
            "threads": 1,
        }

    def start(self, *calls, before=""):
        """Start a process that runs the code `before`, then makes the calls."""
        spec = self.root / f"spec_{time.monotonic_ns()}.json"
        said = spec.with_suffix(".said")
        content = {"raw": str(self.raw), "preprocessed": str(self.preprocessed)}
        spec.write_text(
            json.dumps({**content, "said": str(said), "before": before, "calls": calls})
        )
        with spec.with_suffix(".log").open("w") as log:
            process = subprocess.Popen(
                [PYTHON, self.root / "driver.py", spec],
                env={**os.environ, "PYTHONPATH": str(ROOT / "workflow_scripts")},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
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
