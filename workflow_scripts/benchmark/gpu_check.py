"""Check on a GPU what was only tested on CPUs, one line per code path: `make gpu-check`.

Every training is short and has its own process. Without a GPU, the same code runs on the CPU.
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from workflow_scripts.benchmark.variants import ROOT, iterations_table, run_variant, steady
from workflow_scripts.common.arm_schedule import has_schedule, plan_arm
from workflow_scripts.common.console import announce, redirect
from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import read_json, write_json
from workflow_scripts.common.formatting import pipe_table
from workflow_scripts.common.gpus import visible_gpus
from workflow_scripts.common.hardware import find_device
from workflow_scripts.common.nnunet_setup import find_trainer
from workflow_scripts.records.ledger import EpochWork, Ledger, Work
from workflow_scripts.study.settings import RunSettings
from workflow_scripts.study.specification import RunSpec
from workflow_scripts.trainers.curricula.schedules.schedule import Schedule
from workflow_scripts.trainers.curricula.schedules.settings import TrainingLength
from workflow_scripts.training.provenance import git_commit, versions

FOLD_MODULE = "workflow_scripts.benchmark.fold_process"
SHARED_MODULE = "workflow_scripts.benchmark.shared_training"

PASSED, FAILED, IMPOSSIBLE = "passed", "failed", "not possible here"
EAGER, COMPILED = {"nnUNet_compile": "f"}, {"nnUNet_compile": "t"}
"""Compiled is nnU-Net's default on CUDA, in which every arm is trained. On a CPU it never compiles.
Checks of something else are eager, because compilation takes up to half a minute per size."""

FIRST = 3
"""Iterations whose losses are compared."""
SAME, CLOSE = 1e-3, 5e-2
"""Maximum relative difference of losses on two devices in one precision; in two precisions."""
POWER = (10.0, 2000.0)
"""Plausible watts of a training GPU, including its idle power."""
MEMORY = 1.2
"""Maximum memory of `random` relative to `constant`."""
SKIPPED = 0.25
"""Maximum share of steps that the gradient scaler skips; it skips the first ones while its initial
scale is too high."""
LONG = 1000
"""Epochs of a schedule that contains all stages of its arm."""
PATIENCE = 600
"""Maximum seconds for a training of a few iterations."""


class ImpossibleError(Exception):
    """The check is not possible here; the message is the reason."""


class FailedError(Exception):
    """A check failed; the message is the result."""


@dataclass(frozen=True)
class Arm:
    """An arm that is checked: its trainer and its parameters."""

    trainer: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checks:
    """The checks of one task.

    Attributes:
        run: the training; arm and trainer are replaced by each check's.
        settings: the settings; length and conditions are replaced by each check's.
        plans_file, splits_file: nnU-Net's files.
        folder: where temporary folders for trainings are made.
        arms: arms that are trained, including `constant`.
        iterations: iterations of each epoch.
        backend: backend of torch.compile, with which networks are then compiled on a CPU too; None
            is nnU-Net's choice.
    """

    run: RunSpec
    settings: RunSettings
    plans_file: Path
    splits_file: Path
    folder: Path
    arms: Mapping[str, Arm]
    iterations: int
    backend: str | None = None
    _kept: dict[str, dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def device(self) -> str:
        """`cuda` or `cpu`."""
        return find_device(self.settings.training.device)

    @property
    def all(self) -> dict[str, Callable[[], str]]:
        """Every check by name; a check returns its result or raises one of the errors."""
        return {
            **{f"arm {name}": partial(self.check_arm, name) for name in self.arms},
            "losses in fp32 equal those on a CPU": self.check_losses,
            "mixed precision": self.check_mixed_precision,
            "torch.compile": self.check_compile,
            "channels last": self.check_channels_last,
            "augmentation on the device": self.check_device_augmentation,
            "memory of random / constant": self.check_memory,
            "deterministic resume after kill -9": self.check_resume,
            "energy of the GPU (NVML)": self.check_energy,
            "one training on two GPUs (DDP)": self.check_sharing,
        }

    def check_arm(self, name: str) -> str:
        """Train an arm through all of its stages, compiled if nnU-Net's default is to compile."""
        found, schedule = self._arm(name), self._schedule(self.arms[name])
        _check_steps(found)
        self._check_compiled(found)
        if schedule is None:
            return self._describe(found)
        seen = {tuple(size) for _, size, *_ in found["iterations"]}
        planned = {tuple(stage.patch_size) for stage in schedule.stages}
        drawn = schedule.stage_of_epoch(0) is None
        if not (seen <= planned if drawn else seen == planned):
            raise FailedError(
                f"trained at sizes {sorted(seen)}, but {sorted(planned)} were planned"
            )
        return self._describe(found)

    def check_losses(self) -> str:
        """Compare the first losses in fp32 with those of the CPU."""
        texts = []
        for name in [arm for arm in ("constant", "progressive") if arm in self.arms]:
            here = self._short(name, EAGER, full_precision=True)
            there = self._short(name, EAGER, device="cpu", precision="fp32")
            texts.append(f"{name} {_compare(here, there, SAME)}")
        return "; ".join(texts)

    def check_mixed_precision(self) -> str:
        """Compare the first losses in mixed precision with those in fp32."""
        precision = "auto" if self.device == "cuda" else "bf16"
        mixed = self._short("constant", EAGER, precision=precision)
        if self.device == "cuda" and not (mixed["scaler"] and mixed["output"] == "float16"):
            raise FailedError(
                f"the network's output is {mixed['output']}, gradient scaler: {mixed['scaler']}"
            )
        full = self._short("constant", EAGER, full_precision=True)
        return f"{mixed['precision']}: {_compare(mixed, full, CLOSE)}"

    def check_compile(self) -> str:
        """Compare the first losses of a compiled network with those of an eager one."""
        if self.device == "cpu" and self.backend is None:
            raise ImpossibleError("nnU-Net does not compile on a CPU")
        texts = []
        for name in [arm for arm in ("constant", "progressive") if arm in self.arms]:
            compiled = self._short(name, COMPILED, epochs=2)
            eager = self._short(name, EAGER, epochs=2)
            self._check_compiled(compiled)
            if eager["compiled"]:
                raise FailedError("the network that should be eager was compiled")
            ratio = steady(compiled) / steady(eager)
            compared = _compare(compiled, eager, CLOSE)
            texts.append(f"{name} {compared}; time per iteration {ratio:.2f} of eager")
        return "; ".join(texts)

    def check_channels_last(self) -> str:
        """Compare the first losses in channels-last order with those in contiguous order."""
        last = self._short("constant", EAGER, epochs=2, memory_format="channels_last")
        plain = self._short("constant", EAGER, epochs=2, memory_format="contiguous")
        formats = last["memory_format"], plain["memory_format"]
        if formats != ("channels_last", "contiguous"):
            raise FailedError(f"the weights were in the orders {formats}")
        ratio = steady(last) / steady(plain)
        tolerance = CLOSE if self.device == "cuda" else SAME
        return f"{_compare(last, plain, tolerance)}; time of an iteration {ratio:.2f} of contiguous"

    def check_device_augmentation(self) -> str:
        """Train with small patches augmented on the training's device."""
        name = "progressive_performance"
        arm = self.arms.get(name, Arm("nnUNetTrainerProgressivePerformancePatch"))
        parameters = {**arm.parameters, "augment_on_device": True}
        found = self._train(f"{name} on the device", replace(arm, parameters=parameters))
        _check_steps(found)
        planned = found["iterations"][-1][1]
        rows = zip(found["iterations"], found["devices"], strict=True)
        there = [device == self.device for (_, size, *_), device in rows if size != planned]
        if not (there and all(there)):
            raise FailedError(f"{sum(there)} of {len(there)} batches were made on the device")
        return self._describe(found)

    def check_memory(self) -> str:
        """Compare the peak memory of random sizes with that of constant ones."""
        if "random" not in self.arms:
            raise ImpossibleError("the arm random is not among the checked ones")
        random, constant = self._arm("random"), self._arm("constant")
        names = {"peak_mb": "allocated"}
        if self.device == "cuda":  # what is reserved includes the gaps that various sizes leave
            names["reserved_mb"] = "reserved"
        ratios = {text: random[name] / constant[name] for name, text in names.items()}
        text = ", ".join(f"{ratio:.2f} {name}" for name, ratio in ratios.items())
        if max(ratios.values()) > MEMORY:
            raise FailedError(f"{text}, more than {MEMORY:g}")
        return text

    def check_resume(self) -> str:
        """Kill a deterministic training, resume it, and compare it with an uninterrupted one."""
        whole = self._fold("whole", kill=False)
        resumed = self._fold("killed", kill=True)
        one, other = (_weights(path) for path in (whole, resumed))
        differing = [name for name in one if not torch.equal(one[name], other[name])]
        if differing:
            raise FailedError(
                f"{len(differing)} of {len(one)} weights differ, {differing[0]} first"
            )
        return f"all {len(one)} weights are equal bit by bit"

    def check_energy(self) -> str:
        """Read the energy of a training from the GPU's own meter."""
        if self.device == "cpu":
            raise ImpossibleError("there is no GPU")
        entries = Ledger(self._fold("whole", kill=False).parent / "ledger.jsonl").read()
        work = [entry for entry in entries if isinstance(entry, Work)]
        if errors := {entry.reading.error for entry in work if entry.reading.error}:
            raise FailedError("; ".join(sorted(errors)))
        pue = self.settings.energy.pue
        joules = sum(entry.reading.gpu_kwh for entry in work) / pue * 3.6e6
        watts = joules / sum(entry.seconds for entry in work)
        if not POWER[0] < watts < POWER[1]:
            raise FailedError(f"mean power {watts:.0f} W, {joules:.0f} J in total")
        return f"mean power {watts:.0f} W over set-up, training and validation"

    def check_sharing(self) -> str:
        """Train with two processes on two GPUs, or on the CPU if there is no GPU."""
        gpus = len(visible_gpus()) if self.device == "cuda" else 0
        if self.device == "cuda" and gpus < 2:
            raise ImpossibleError("there is only one GPU")
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            spec = self._spec(folder, "progressive", self._settings(2))
            path = Path(folder, "spec.json")
            path.write_text(json.dumps({**spec, "device": self.device}))
            environment = {**os.environ, **COMPILED, "PYTHONPATH": str(ROOT)}
            command = [sys.executable, "-m", SHARED_MODULE, str(path)]
            logs = [Path(folder, f"{number}.log") for number in (0, 1)]
            processes = []
            for rank, log in enumerate(logs):
                with log.open("w") as file:
                    processes.append(
                        subprocess.Popen(
                            [*command, str(rank)], env=environment, stdout=file, stderr=file
                        )
                    )
            try:
                _wait_for_all(processes)
            finally:
                for process in processes:
                    process.kill()
                    process.wait()
            if any(process.returncode for process in processes):
                raise FailedError(" | ".join(log.read_text()[-1500:] for log in logs))
            one, other = (json.loads(Path(folder, f"{n}.json").read_text()) for n in (0, 1))
        if not one["updates"]:
            raise FailedError(f"all {one['steps']} steps were skipped")
        if one["updates"] == one["steps"]:
            _check_finite(one["losses"])
        if one != other:
            raise FailedError(f"the two processes ended with different weights: {one}, {other}")
        how = "compiled" if one["compiled"] else "eager"
        return f"{len(one['losses'])} epochs, {how}; both processes have the same weights"

    def _check_compiled(self, found: Mapping[str, Any]) -> None:
        """Raise FailedError unless every size of a compiled network was compiled."""
        if not found["compiled"]:
            return
        first: dict[tuple[int, ...], int] = {}
        for (_, size, *_), frames in zip(found["iterations"], found["compilations"], strict=True):
            first.setdefault(tuple(size), frames)
        if eager := sorted(size for size, frames in first.items() if not frames):
            raise FailedError(f"nothing was compiled in the first step at the sizes {eager}")

    # --- trainings

    def _run(self, name: str, arm: Arm) -> RunSpec:
        """Return the specification of an arm's training."""
        return replace(self.run, arm=name, trainer=arm.trainer, parameters=dict(arm.parameters))

    def _schedule(self, arm: Arm) -> Schedule | None:
        """Return the schedule of a long training; None for nnU-Net's own trainers."""
        trainer = find_trainer(arm.trainer)
        if not has_schedule(trainer):
            return None
        length = TrainingLength(LONG, self.iterations, self.settings.training.seed)
        plans = read_json(self.plans_file)
        return plan_arm(plans, self.run.configuration, trainer, arm.parameters, length)

    def _arm(self, name: str) -> dict[str, Any]:
        """Measure an arm's training, once."""
        if name not in self._kept:
            self._kept[name] = self._train(name, self.arms[name])
        return self._kept[name]

    def _train(self, name: str, arm: Arm) -> dict[str, Any]:
        """Measure a training with one epoch per stage, and at least three."""
        schedule = self._schedule(arm)
        epochs = max(3, len(schedule.stages) if schedule else 0)
        found = self._measure(name, arm, self._settings(epochs), COMPILED)
        wanted = self.device == "cuda" or self.backend is not None
        # A trainer with its own rule, such as `scale_space`, never compiles.
        trainer: Any = find_trainer(arm.trainer)
        wanted &= trainer._do_i_compile is nnUNetTrainer._do_i_compile
        if found["compiled"] != wanted:
            raise FailedError(
                f"the network was {'not ' * wanted}compiled, unlike nnU-Net's default"
            )
        return found

    def _short(
        self,
        name: str,
        environment: Mapping[str, str],
        epochs: int = 1,
        full_precision: bool = False,
        **changes: Any,
    ) -> dict[str, Any]:
        """Measure the first iterations of an arm, once per settings."""
        key = json.dumps([name, environment, epochs, full_precision, changes])
        if key not in self._kept:
            if full_precision and self.device == "cpu":
                changes["precision"] = "fp32"
            settings, arm = self._settings(epochs, **changes), self.arms[name]
            self._kept[key] = self._measure(name, arm, settings, environment, full_precision)
        return self._kept[key]

    def _settings(self, epochs: int, **changes: Any) -> RunSettings:
        """Return settings of a training with `epochs` epochs of few iterations."""
        few: dict[str, Any] = {"iterations_per_epoch": max(FIRST, self.iterations)}
        few |= {"validation_iterations_per_epoch": 1}
        training = replace(self.settings.training, epochs=epochs, **few, **changes)
        return replace(self.settings, training=training)

    def _measure(
        self,
        name: str,
        arm: Arm,
        settings: RunSettings,
        environment: Mapping[str, str],
        full_precision: bool = False,
    ) -> dict[str, Any]:
        return run_variant(
            self._run(name, arm),
            settings,
            self.plans_file,
            self.folder,
            environment,
            full_precision=full_precision,
            backend=self.backend if environment == COMPILED else None,
        )

    def _spec(self, folder: str | Path, name: str, settings: RunSettings) -> dict[str, Any]:
        """Return the specification that `fold_process` or `shared_training` reads."""
        run = self._run(name, self.arms[name])
        spec = {"run": asdict(run), "settings": asdict(settings), "folder": str(folder)}
        spec |= {"plans_file": str(self.plans_file.absolute())}
        return spec | {"splits_file": str(self.splits_file.absolute())}

    def _fold(self, name: str, kill: bool) -> Path:
        """Train a fold once, with or without a kill; return its final checkpoint."""
        folder = self.folder / f"{self.run.task}_{name}"
        settings = self._settings(4, deterministic=True, checkpoint_minutes=0)
        spec = self._spec(folder, "progressive", settings)
        final = RunSpec(**spec["run"]).fold_folder(folder / "nnunet") / "checkpoint_final.pth"
        if final.exists():
            return final
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "spec.json"
        path.write_text(json.dumps(spec))
        if kill:
            ledger = Ledger(final.parent / "ledger.jsonl")
            self._run_fold(path, until=lambda: _epochs_done(ledger) >= 2)
            if final.exists():
                raise FailedError("the training ended before it could be killed")
        self._run_fold(path)
        return final

    def _run_fold(self, path: Path, until: Callable[[], bool] = lambda: False) -> None:
        """Run a fold's process to its end, or kill it as soon as `until` is true."""
        environment = {**os.environ, **COMPILED, "PYTHONPATH": str(ROOT)}
        log = path.with_suffix(".log")
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", FOLD_MODULE, path],
                env=environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE
        try:
            while process.poll() is None and not until() and time.monotonic() < deadline:
                time.sleep(0.02)
            if process.poll() is None and time.monotonic() >= deadline:
                raise FailedError(f"a training took more than {PATIENCE} s")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode not in (0, -signal.SIGKILL):
            raise FailedError(log.read_text()[-1500:])

    def _describe(self, found: Mapping[str, Any]) -> str:
        """Return the cost and speed of a measured training in one line."""
        table = iterations_table(found)
        later = table[table.groupby("patch").cumcount() > 0]
        parts = [f"{len(table)} iterations at {table['patch'].nunique()} sizes"]
        constant = iterations_table(self._arm("constant"))
        constant = constant[constant["epoch"] > 0]
        if len(later) and later["gflop"].sum() > 0:
            cost = later["seconds"].sum() / later["gflop"].sum()
            cost /= constant["seconds"].sum() / constant["gflop"].sum()
            parts.append(f"time over FLOPs {cost:.2f} of constant's")
        first = (
            table.groupby("patch")
            .head(1)
            .iloc[1:]
            .merge(later.groupby("patch")["seconds"].median().rename("median"), on="patch")
        )
        if len(first):
            parts.append(f"stage switch {(first['seconds'] - first['median']).median():.3f} s")
        step = median(table["seconds"]) - median(found["waits"])
        parts.append(f"step {step:.3f} s, wait for a batch {median(found['waits']):.3f} s")
        parts.append(f"{found['load_seconds'] / len(table):.2f} s of processor time to load it")
        parts.append(f"{found['peak_mb']:.0f} MB")
        if found["reserved_mb"] is not None:
            parts.append(f"{found['reserved_mb']:.0f} MB reserved")
        if found["compiled"]:
            parts.append(f"compiled in {found['compile_seconds']:.0f} s")
        else:
            parts.append("eager")
        if skipped := found["updated"].count(False):
            parts.append(f"{skipped} of {len(table)} steps skipped")
        return ", ".join(parts)


def _check_finite(losses: Sequence[float]) -> None:
    if not all(map(math.isfinite, losses)):
        raise FailedError(f"losses are not finite: {losses}")


def _check_steps(found: Mapping[str, Any]) -> None:
    """Raise FailedError if many steps were skipped, or the loss of another one is not finite."""
    losses, updated = found["losses"], found["updated"]
    skipped = updated.count(False)
    if skipped > SKIPPED * len(losses):
        raise FailedError(f"the gradient scaler skipped {skipped} of {len(losses)} steps")
    _check_finite([loss for loss, done in zip(losses, updated, strict=True) if done])


def _comparable(found: Mapping[str, Any]) -> int:
    """Return the number of first losses before which no step was skipped, at most `FIRST`.

    After a skipped step, two trainings no longer have the same weights. Its own loss is still
    comparable if it is finite.
    """
    updated = found["updated"][:FIRST]
    if False not in updated:
        return len(updated)
    skipped = updated.index(False)
    return skipped + math.isfinite(found["losses"][skipped])


def _compare(one: Mapping[str, Any], other: Mapping[str, Any], tolerance: float) -> str:
    """Compare the first losses; raise FailedError if they differ by more than `tolerance`.

    Losses after a step that one of the trainings skipped are left out.
    """
    count = min(_comparable(one), _comparable(other))
    if not count:
        raise FailedError("the first step was skipped, so that no loss can be compared")
    pairs = list(zip(one["losses"][:count], other["losses"][:count], strict=True))
    _check_finite([loss for pair in pairs for loss in pair])
    largest = max(abs(a - b) / max(abs(b), 0.1) for a, b in pairs)
    if largest > tolerance:
        raise FailedError(f"losses differ by {largest:.1e}, more than {tolerance:g}: {pairs}")
    return f"the first {len(pairs)} losses differ by {largest:.0e} at most"


def _epochs_done(ledger: Ledger) -> int:
    """Return the number of epochs in a training's ledger."""
    return sum(isinstance(entry, EpochWork) for entry in ledger.read())


def _weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    found = torch.load(checkpoint, map_location="cpu", weights_only=False)
    return found["network_weights"]


def _wait_for_all(processes: Sequence[subprocess.Popen]) -> None:
    """Wait until all have ended, or one has failed: the other would wait for it."""
    deadline = time.monotonic() + PATIENCE
    while any(process.poll() is None for process in processes):
        if any(process.poll() for process in processes) or time.monotonic() > deadline:
            return
        time.sleep(0.1)


def run_checks(checks: Checks) -> list[dict[str, str]]:
    """Run all checks of a task; return task, check, outcome and detail of each.

    Any failure of a check is an outcome; the other checks still run.
    """
    rows = []
    for name, check in checks.all.items():
        announce(f"check: {checks.run.task}, {name}")
        try:
            outcome, detail = PASSED, check()
        except ImpossibleError as error:
            outcome, detail = IMPOSSIBLE, str(error)
        except (FailedError, UserError) as error:
            outcome, detail = FAILED, str(error)
        except Exception as error:  # any error belongs in the report
            outcome, detail = FAILED, f"{type(error).__name__}: {error}"
        row = {"task": checks.run.task, "check": name, "outcome": outcome, "detail": detail}
        announce(f"check: {outcome}: {detail.splitlines()[-1] if detail else ''}")
        rows.append(row)
    return rows


def describe_machine() -> dict[str, str]:
    """Return machine and versions for the report."""
    gpus = ", ".join(gpu.name for gpu in visible_gpus())
    found = {"gpus": gpus or "none", "cuda": str(torch.version.cuda)}
    found["cudnn"] = str(torch.backends.cudnn.version() or "none")
    found["processor"] = str(torch.cpu.get_capabilities().get("cpu_name", ""))
    found["cores"] = str(os.cpu_count())
    return found | {"commit": str(git_commit()), **versions()}


def to_markdown(rows: Sequence[Mapping[str, str]], machine: Mapping[str, str]) -> str:
    """Return the report as a page that can be pasted into an issue."""
    table = pd.DataFrame(rows)
    table["detail"] = [" ".join(text.split()).replace("|", "/")[-600:] for text in table["detail"]]
    counts = table["outcome"].value_counts()
    summary = ", ".join(f"{counts.get(name, 0)} {name}" for name in (PASSED, FAILED, IMPOSSIBLE))
    listed = ", ".join(f"{name} {value}" for name, value in machine.items())
    return f"GPU check: {summary}.\n\n{listed}.\n\n{pipe_table(table)}\n"


if __name__ == "__main__":
    redirect(snakemake.log[0])
    params, page = snakemake.params, Path(snakemake.output.page)
    rows = []
    with tempfile.TemporaryDirectory(dir=page.parent) as folder:
        inputs = zip(params.runs, snakemake.input.plans, snakemake.input.splits, strict=True)
        for run, plans, splits in inputs:
            rows += run_checks(
                Checks(
                    run=RunSpec(
                        study=page.parent.name,
                        dataset=Path(plans).parent.name,
                        plans=Path(plans).stem,
                        arm="constant",
                        trainer="",
                        **run,
                    ),
                    settings=RunSettings.of(
                        params.training, params.energy, mirroring=False, threads=snakemake.threads
                    ),
                    plans_file=Path(plans),
                    splits_file=Path(splits),
                    folder=Path(folder),
                    arms={name: Arm(**arm) for name, arm in params.arms.items()},
                    iterations=params.iterations,
                )
            )
    machine = describe_machine()
    write_json({"machine": machine, "checks": rows}, Path(snakemake.output.report))
    page.write_text(to_markdown(rows, machine), encoding="utf-8")
