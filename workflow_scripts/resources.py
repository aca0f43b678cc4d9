"""What the jobs of a study ask a scheduler for: memory, time, disk. One machine ignores it.

Cores are the rules' `threads`, which also set nnU-Net's numbers of processes. What depends on the
size of a task's images is an estimate and was not measured. The Snakefile asks this module while it
is parsed, so it imports nothing heavy.
"""

import contextlib
import csv
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from endings import SILENT

SNAKEMAKE_MB = 400
"""What a job's two Snakemakes and its Python take before any work."""
GROWTH, MOST_GROWTH = 1.5, 3.0
"""Factor on the memory for every attempt that was killed, and the largest one."""
UNKNOWN_MEGAVOXELS = 100.0
"""Largest case of a task of which nothing is known: 512 × 512 × 400."""
LARGEST_TO_MEDIAN = 3.0
"""How much larger than its median case the largest case of a task may be."""
SETUP_MINUTES = 20.0
"""Of a training, besides what is forecast: the job's start, imports, first batches."""


@dataclass(frozen=True)
class Need:
    """What a rule needs; a voxel counts once a channel.

    Attributes:
        fixed_mb: memory, whatever the data.
        process_mb: memory of each of its `threads` processes, whatever the data.
        bytes_per_voxel: memory of each process for a voxel of the largest case.
        minutes: time, whatever the data.
        seconds_per_megavoxel: time of one process for a megavoxel of the task.
        disk_mb: disk that the outputs fill, whatever the data.
        disk_per_archive: the same, as a multiple of the task's archive.
    """

    fixed_mb: float
    process_mb: float = 0
    bytes_per_voxel: float = 0
    minutes: float = 30
    seconds_per_megavoxel: float = 0
    disk_mb: float = 1000
    disk_per_archive: float = 0


# The parts by process are about twice what the demo task took. A Slurm without control groups
# counts shared memory for every process: preprocessing, which forks, had 5.3 GB with two of them.
NEEDS = {
    "extract_task": Need(600, process_mb=100, minutes=120, disk_per_archive=2.5),
    "convert_task": Need(
        1000, process_mb=1000, bytes_per_voxel=8, minutes=120, disk_per_archive=1.5
    ),
    "import_own_task": Need(1000, process_mb=1000, bytes_per_voxel=8, minutes=120, disk_mb=50_000),
    "fingerprint_task": Need(
        2000, process_mb=1000, bytes_per_voxel=16, minutes=60, seconds_per_megavoxel=1
    ),
    "preprocess_task": Need(
        6000,
        process_mb=1000,
        bytes_per_voxel=32,
        minutes=60,
        seconds_per_megavoxel=4,
        disk_per_archive=4,
    ),
    # Its processes augment patches; half as many export whole cases in the final validation.
    "train_fold": Need(6000, process_mb=1300, bytes_per_voxel=8, disk_mb=4000),
    # A checkpoint has every weight of the hypernetwork and its optimiser's states.
    "bake_model": Need(6000),
    "evaluate_scale": Need(6000, bytes_per_voxel=8, minutes=60, seconds_per_megavoxel=12),
    "evaluate_transfer": Need(6000, bytes_per_voxel=8, minutes=60, seconds_per_megavoxel=12),
    "measure_surface_distance": Need(800, bytes_per_voxel=24),
    "measure_class_balance": Need(3000, bytes_per_voxel=8, minutes=120),
    "plot_predictions": Need(1500, bytes_per_voxel=24),
    "bench_trainers": Need(6000, process_mb=1300, minutes=240, disk_mb=4000),
}


@dataclass(frozen=True)
class Images:
    """Sizes of a task's labelled images, channels counted.

    Attributes:
        largest, total: megavoxels of the largest case, and of all.
    """

    largest: float
    total: float


class Requests:
    """Answers for a study; its methods are the values of a rule's `resources`.

    Args:
        config: the checked configuration.
        published_plans: path of `nnunet_plans.tsv`.
        datasets: nnU-Net's dataset of every task.
        describe_run: returns the names of a training from its wildcards.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        published_plans: Path,
        datasets: Mapping[str, str],
        describe_run: Callable[[Any], Mapping[str, Any]],
    ) -> None:
        self._config, self._cluster = config, config["cluster"]
        self._datasets, self._describe_run = datasets, describe_run
        with published_plans.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t")
            self._published = {row["dataset"]: row for row in rows}

    def memory_mb(self, wildcards: Any, threads: int, attempt: int, rulename: str) -> int:
        """Return the memory of a job that is no training; it grows with the attempt."""
        return self._memory_mb(rulename, wildcards, threads, attempt - 1)

    def minutes(self, wildcards: Any, threads: int, attempt: int, rulename: str) -> int:
        """Return the time of a job that is no training; it grows with the attempt."""
        need = NEEDS[rulename]
        megavoxels = self._images(wildcards).total
        wanted = need.minutes + need.seconds_per_megavoxel * megavoxels / threads / 60
        return _bounded(attempt * wanted, self._cluster["max_runtime_minutes"])

    def disk_mb(self, wildcards: Any, rulename: str) -> int:
        """Return the disk that the outputs of a job fill."""
        need, total = NEEDS[rulename], 0
        for task in self._tasks(wildcards):
            archive = Path(f"resources/archives/{task}.tar")
            total += archive.stat().st_size if archive.is_file() else 0
        return math.ceil(need.disk_mb + need.disk_per_archive * total / 1e6)

    def training_memory_mb(self, wildcards: Any, threads: int) -> int:
        """Return the memory of a training; it grows with the attempts that were killed."""
        killed = killed_attempts(self._ledger(wildcards))
        return self._memory_mb("train_fold", wildcards, threads, killed)

    def training_minutes(self, wildcards: Any, attempt: int) -> int | None:
        """Return the time of one slice of a training, or None: the partition's default.

        A training stops by itself before the time is over, and its next attempt goes on; so a
        forecast that is too low costs a further slice and no work.
        """
        limit = self._cluster["max_runtime_minutes"]
        if not self.forecast_decides:
            return limit
        table = Path(f"results/{wildcards.study}/forecast/forecast.csv")
        hours = forecast_hours(table, wildcards.task, wildcards.arm)
        if hours is None:
            return limit
        wanted = 60 * hours * self._cluster["forecast_margin"] * attempt
        return _bounded(SETUP_MINUTES + wanted, limit)

    @property
    def forecast_decides(self) -> bool:
        """Whether the time of a training comes from the forecast, which must then be there first.

        The published calibration is of a GPU and says nothing of a training on the CPU.
        """
        of_gpu = self._config["forecast"]["calibration"] == "published"
        on_cpu = self._config["training"]["device"] == "cpu"
        return self._cluster["max_runtime_minutes"] is not None and not (of_gpu and on_cpu)

    def _memory_mb(self, rule: str, wildcards: Any, threads: int, killed: int) -> int:
        need = NEEDS[rule]
        voxels = 1e6 * self._images(wildcards).largest
        each = need.process_mb + need.bytes_per_voxel * voxels / 2**20
        wanted = SNAKEMAKE_MB + need.fixed_mb + threads * each
        return _bounded(wanted * min(GROWTH**killed, MOST_GROWTH), self._cluster["max_memory_mb"])

    def _tasks(self, wildcards: Any) -> list[str]:
        """Return the task of a job, or the tasks of the study."""
        if hasattr(wildcards, "task"):
            return [wildcards.task]
        if hasattr(wildcards, "dataset"):
            return [task for task, name in self._datasets.items() if name == wildcards.dataset]
        return list(self._config["tasks"])

    def _images(self, wildcards: Any) -> Images:
        sizes = []
        for task in self._tasks(wildcards):
            dataset = self._datasets[task]
            fingerprint = Path(f"resources/nnUNet_preprocessed/{dataset}/dataset_fingerprint.json")
            sizes.append(image_sizes(fingerprint, self._published.get(dataset)))
        return Images(max(size.largest for size in sizes), sum(size.total for size in sizes))

    def _ledger(self, wildcards: Any) -> Path:
        run = self._describe_run(wildcards)
        model = f"{run['trainer']}__{run['plans']}__{run['configuration']}"
        folder = Path(f"results/{run['study']}/nnunet/{run['arm']}/{run['dataset']}/{model}")
        return folder / f"fold_{run['fold']}" / "ledger.jsonl"


def image_sizes(fingerprint: Path, published: Mapping[str, str] | None) -> Images:
    """Return the sizes of a task's images, as well as they are known by now.

    Args:
        fingerprint: nnU-Net's fingerprint of the task, which need not be there yet.
        published: the task's row of `nnunet_plans.tsv`, if it has one.
    """
    with contextlib.suppress(OSError, ValueError):  # not there yet, or only half of it
        content = json.loads(fingerprint.read_text())
        channels = len(content["foreground_intensity_properties_per_channel"])
        cases = [channels * math.prod(shape) / 1e6 for shape in content["shapes_after_crop"]]
        return Images(max(cases), sum(cases))
    if published is not None:
        median = math.prod(json.loads(published["median_shape"])) / 1e6
        median *= int(published["n_input_channels"])
        return Images(LARGEST_TO_MEDIAN * median, int(published["n_training_cases"]) * median)
    return Images(UNKNOWN_MEGAVOXELS, 100 * UNKNOWN_MEGAVOXELS)


def forecast_hours(table: Path, task: str, arm: str) -> float | None:
    """Return the forecast hours of one fold; None where nothing is forecast (yet)."""
    if not table.is_file():
        return None
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if (row["task"], row["arm"]) == (task, arm) and row["hours"]:
                return float(row["hours"]) / int(row["folds"])
    return None


def killed_attempts(ledger: Path) -> int:
    """Count the attempts of a training that ended without a message.

    SIGKILL ends them so, which is how a scheduler and the kernel stop a process that takes too much
    memory; a signal, the time limit and every error leave one.
    """
    told: dict[int, str] = {}
    for line in ledger.read_text().splitlines() if ledger.is_file() else ():
        if '"attempt", ' in line or '"end", ' in line:
            with contextlib.suppress(json.JSONDecodeError):  # cut short by a kill
                entry = json.loads(line)
                told[entry["attempt"]] = entry.get("how", SILENT)
    return list(told.values()).count(SILENT)


def _bounded(wanted: float, limit: int | None) -> int:
    return math.ceil(min(wanted, limit or math.inf))
