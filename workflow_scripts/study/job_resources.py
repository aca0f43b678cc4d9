"""Resources that the jobs of a study request from a scheduler: memory, time, disk, devices.

They follow from the estimates in `config/tables/job_resources.tsv`, the size of the images, the
kills recorded in the ledger, and the forecast. Cores are the rules' `threads`, which also set
nnU-Net's numbers of processes. A single machine ignores all requests except the devices.
"""

import contextlib
import csv
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from workflow_scripts.common.nnunet_setup import PREPROCESSED
from workflow_scripts.records.ledger import Ledger, killed_attempts
from workflow_scripts.study.specification import RunSpec, Study

TRAINING = "train_fold"
"""The rule whose memory depends on its ledger and whose time depends on the forecast."""
SNAKEMAKE_MB = 400
"""Memory of a job's two Snakemake processes and its Python before any work."""
GROWTH, MOST_GROWTH = 1.5, 3.0
"""Factor on the memory for every killed attempt, and limit of the total factor."""
UNKNOWN_MEGAVOXELS = 100.0
"""Assumed largest case of an unknown task: 512 × 512 × 400."""
LARGEST_TO_MEDIAN = 3.0
"""Assumed ratio of a task's largest case to its median case."""
SETUP_MINUTES = 20.0
"""Time of a training that the forecast does not cover: job start, imports, first batches."""


@dataclass(frozen=True)
class RuleNeeds:
    """Requirements of a rule, a row of `job_resources.tsv`; voxels count once per channel.

    Attributes:
        fixed_mb: memory, independent of the data.
        process_mb: memory of each of its `threads` processes, independent of the data.
        bytes_per_voxel: memory of each process per voxel of the largest case.
        minutes: time, independent of the data.
        seconds_per_megavoxel: time of one process per megavoxel of the task.
        disk_mb: disk space of the outputs, independent of the data.
        disk_per_archive: further disk space of the outputs, as a multiple of the task's archive.
        gpu: whether it computes on the training's device.
        power_meter: when it must not run beside another metered job: `never`, `always`, or only
            if the meter reads the whole `machine`.
    """

    fixed_mb: float
    process_mb: float
    bytes_per_voxel: float
    minutes: float
    seconds_per_megavoxel: float
    disk_mb: float
    disk_per_archive: float
    gpu: bool
    power_meter: str


def read_needs(table: Path) -> dict[str, RuleNeeds]:
    """Read `config/tables/job_resources.tsv`: rule -> its requirements."""
    numbers = [field.name for field in fields(RuleNeeds) if field.type is float]
    with table.open(encoding="utf-8", newline="") as file:
        return {
            row["rule"]: RuleNeeds(
                **{name: float(row[name]) for name in numbers},
                gpu=row["gpu"] == "yes",
                power_meter=row["power_meter"],
            )
            for row in csv.DictReader(file, delimiter="\t")
        }


@dataclass(frozen=True)
class Images:
    """Sizes of a task's labelled images; voxels count once per channel.

    Attributes:
        largest, total: megavoxels of the largest case and of all cases.
    """

    largest: float
    total: float


class JobResources:
    """The resources of each rule of a study.

    Args:
        study: the study.
        needs: path of `config/tables/job_resources.tsv`.
        published_plans: path of `nnunet_plans.tsv`.
    """

    def __init__(self, study: Study, needs: Path, published_plans: Path) -> None:
        self._study, self._config, self._cluster = study, study.config, study.config["cluster"]
        self.needs = read_needs(needs)
        with published_plans.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t")
            self._published = {row["dataset"]: row for row in rows}

    def of(self, rule: str) -> dict[str, int | Callable[..., int | None]]:
        """Return the `resources` of a rule: numbers, and functions that Snakemake calls for a job.

        The rule is given by name, because Snakemake's `rulename` differs in modules imported `as`.
        """

        def mem_mb(wildcards: Any, threads: int, attempt: int) -> int:
            return self.memory_mb(rule, wildcards, threads, attempt)

        def runtime(wildcards: Any, threads: int, attempt: int) -> int | None:
            return self.minutes(rule, wildcards, threads, attempt)

        def disk_mb(wildcards: Any) -> int:
            return self.disk_mb(rule, wildcards)

        asked: dict[str, Any] = {"mem_mb": mem_mb, "runtime": runtime, "disk_mb": disk_mb}
        need = self.needs[rule]
        if need.gpu:
            asked["gpu"] = int(self._config["training"]["device"] != "cpu")
        if need.power_meter != "never":
            meters_machine = self._config["energy"]["tracking_mode"] == "machine"
            asked["power_meter"] = int(need.power_meter == "always" or meters_machine)
        return asked

    def memory_mb(self, rule: str, wildcards: Any, threads: int, attempt: int) -> int:
        """Return the memory of a job, which grows with the number of killed attempts.

        For a training, the ledger counts them, because Snakemake also counts slices that ended by
        themselves. For any other job, all earlier attempts count as killed.
        """
        killed = attempt - 1
        if rule == TRAINING:
            killed = killed_attempts(self._ledger(wildcards).read())
        need = self.needs[rule]
        voxels = 1e6 * self._images(wildcards).largest
        each = need.process_mb + need.bytes_per_voxel * voxels / 2**20
        wanted = SNAKEMAKE_MB + need.fixed_mb + threads * each
        return _bounded(wanted * min(GROWTH**killed, MOST_GROWTH), self._cluster["max_memory_mb"])

    def minutes(self, rule: str, wildcards: Any, threads: int, attempt: int) -> int | None:
        """Return the time of a job, which grows with the attempt; None is the partition's default.

        A training gets one slice. It stops by itself before the time is over, and its next attempt
        resumes it. A forecast that is too low thus costs a further slice but no work.
        """
        limit: int | None = self._cluster["max_runtime_minutes"]
        if rule != TRAINING:
            need, megavoxels = self.needs[rule], self._images(wildcards).total
            wanted = need.minutes + need.seconds_per_megavoxel * megavoxels / threads / 60
            return _bounded(attempt * wanted, limit)
        if not self.forecast_decides:
            return limit
        table = Path(f"results/{self._study.name}/forecast/forecast.csv")
        hours = forecast_hours(table, wildcards.task, wildcards.arm)
        if hours is None:
            return limit
        wanted = 60 * hours * self._cluster["forecast_margin"] * attempt
        return _bounded(SETUP_MINUTES + wanted, limit)

    def disk_mb(self, rule: str, wildcards: Any) -> int:
        """Return the disk space of a job's outputs."""
        need, total = self.needs[rule], 0
        for task in self._tasks(wildcards):
            archive = Path(f"resources/archives/{task}.tar")
            total += archive.stat().st_size if archive.is_file() else 0
        return math.ceil(need.disk_mb + need.disk_per_archive * total / 1e6)

    @property
    def forecast_decides(self) -> bool:
        """Whether the time of a training comes from the forecast, which must then exist first.

        The published calibration is for a GPU and does not apply to a training on the CPU.
        """
        of_gpu = self._config["forecast"]["calibration"] == "published"
        on_cpu = self._config["training"]["device"] == "cpu"
        return self._cluster["max_runtime_minutes"] is not None and not (of_gpu and on_cpu)

    def _tasks(self, wildcards: Any) -> list[str]:
        """Return the task of a job, or the tasks of the study."""
        if hasattr(wildcards, "task"):
            return [wildcards.task]
        if hasattr(wildcards, "dataset"):
            return [self._study.task_of[wildcards.dataset]]
        return self._study.tasks

    def _images(self, wildcards: Any) -> Images:
        sizes = []
        for task in self._tasks(wildcards):
            dataset = self._study.dataset_of[task]
            fingerprint = PREPROCESSED / dataset / "dataset_fingerprint.json"
            sizes.append(image_sizes(fingerprint, self._published.get(dataset)))
        return Images(max(size.largest for size in sizes), sum(size.total for size in sizes))

    def _ledger(self, wildcards: Any) -> Ledger:
        run = RunSpec(**self._study.run(wildcards.task, wildcards.arm, int(wildcards.fold)))
        results = self._study.results(wildcards.arm, wildcards.seed_suffix)
        return Ledger(run.fold_folder(results) / "ledger.jsonl")


def image_sizes(fingerprint: Path, published: Mapping[str, str] | None) -> Images:
    """Return the sizes of a task's images, as far as they are known.

    Args:
        fingerprint: nnU-Net's fingerprint of the task, which need not exist yet.
        published: the task's row of `nnunet_plans.tsv`, if any.
    """
    with contextlib.suppress(OSError, ValueError):  # missing or incomplete
        content = json.loads(fingerprint.read_text(encoding="utf-8"))
        channels = len(content["foreground_intensity_properties_per_channel"])
        cases = [channels * math.prod(shape) / 1e6 for shape in content["shapes_after_crop"]]
        return Images(max(cases), sum(cases))
    if published is not None:
        median = math.prod(json.loads(published["median_shape"])) / 1e6
        median *= int(published["n_input_channels"])
        return Images(LARGEST_TO_MEDIAN * median, int(published["n_training_cases"]) * median)
    return Images(UNKNOWN_MEGAVOXELS, 100 * UNKNOWN_MEGAVOXELS)


def forecast_hours(table: Path, task: str, arm: str) -> float | None:
    """Return the forecast hours of one training; None if there is no forecast (yet)."""
    if not table.is_file():
        return None
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if (row["task"], row["arm"]) == (task, arm) and row["hours"]:
                return float(row["hours"]) / (int(row["folds"]) * int(row.get("seeds", 1)))
    return None


def _bounded(wanted: float, limit: int | None) -> int:
    return math.ceil(min(wanted, limit or math.inf))
