"""nnU-Net's environment and files, as far as several scripts need them."""

import glob
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

RAW = Path("resources/nnUNet_raw")
PREPROCESSED = Path("resources/nnUNet_preprocessed")
PLANS_OF_PLANNER = {
    "ExperimentPlanner": "nnUNetPlans",
    "nnUNetPlannerResEncM": "nnUNetResEncUNetMPlans",
    "nnUNetPlannerResEncL": "nnUNetResEncUNetLPlans",
    "nnUNetPlannerResEncXL": "nnUNetResEncUNetXLPlans",
}


def configure(processes: int, augmentation_workers: int = 1, results: Path | None = None) -> None:
    """Tell nnU-Net its folders and worker counts; it reads them when it is first imported."""
    os.environ["nnUNet_raw"] = str(RAW.absolute())
    os.environ["nnUNet_preprocessed"] = str(PREPROCESSED.absolute())
    os.environ.pop("nnUNet_results", None)
    if results is not None:
        os.environ["nnUNet_results"] = str(results.absolute())
    os.environ["nnUNet_def_n_proc"] = str(processes)
    os.environ["nnUNet_n_proc_DA"] = str(augmentation_workers)
    os.environ["MPLBACKEND"] = "Agg"


def dataset_number(dataset: str) -> int:
    """Return nnU-Net's number of a dataset folder: 4 for `Dataset004_Hippocampus`."""
    return int(dataset[len("Dataset") :].split("_")[0])


def json_hash(value: object) -> str:
    """Return a short hash of a JSON value that does not depend on its formatting."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def file_digests(patterns: Iterable[str]) -> dict[str, str]:
    """Return a short digest of every file that a pattern fits (`**` is any depth), by path."""
    found = {path for pattern in patterns for path in glob.glob(pattern, recursive=True)}  # noqa: PTH207
    return {
        path: hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] for path in sorted(found)
    }


def write_json(value: object, path: Path) -> None:
    """Write JSON atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(partial, path)
