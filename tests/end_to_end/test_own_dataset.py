"""A study of two of the user's own datasets, one in nnU-Net's raw format, one in MSD's."""

import csv
import json
import re
import shutil
from types import SimpleNamespace

import pytest

from helpers.quick_study import quick_snakemake
from helpers.tree import ROOT, plan, said, trainings, write_config
from workflow_scripts.data.archives import extract_archive
from workflow_scripts.data.make_demo_task import write_archive
from workflow_scripts.study.tasks import DEMO_TASK as DEMO

RAW, MSD = "Task501_Raw", "Task502_Msd"
DATASETS = {RAW: "Dataset501_Raw", MSD: "Dataset502_Msd"}
CONFIG = {
    "study": "own",
    "tasks": [RAW, MSD],
    "folds": [0],
    "arms": {
        "constant": {"trainer": "nnUNetTrainerConstantPatch"},
        "progressive": {"trainer": "nnUNetTrainerProgressivePatch"},
    },
    "planning": {
        "overrides": {
            "all": {"patch_size": [16, 24, 16], "batch_size": 2, "features_per_stage": [4, 8, 8]}
        }
    },
    "training": {
        "epochs": 3,
        "iterations_per_epoch": 2,
        "validation_iterations_per_epoch": 1,
        "device": "cpu",
        "threads": 1,
    },
    "validation": {"mirroring": False},
    "energy": {"tracking_mode": "process"},
}

pytestmark = pytest.mark.ci


def to_raw_format(source, target):
    """Convert an MSD dataset of one channel to nnU-Net's raw format."""
    for place, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (target / place).mkdir(parents=True)
        for path in (source / place).iterdir():
            name = path.name.removesuffix(".nii.gz") + ending
            shutil.copy2(path, target / place / name)
    description = json.loads((source / "dataset.json").read_text())
    description = {
        "channel_names": description["modality"],
        "labels": {name: int(value) for value, name in description["labels"].items()},
        "numTraining": description["numTraining"],
        "file_ending": ".nii.gz",
    }
    (target / "dataset.json").write_text(json.dumps(description))


def snapshot(folder):
    return {
        (str(path.relative_to(folder)), path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in folder.rglob("*")
    }


def read_only(folder, writable=False):
    """Remove or restore write permission; the targets of links stay as they are."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if writable else 0o555)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The configuration of a study of both datasets, in its own folder; the data are read-only."""
    data = tmp_path_factory.mktemp("data")
    write_archive(data / f"{DEMO}.tar", cases=6, seed=1)
    extract_archive(data / f"{DEMO}.tar", data / DEMO)
    msd = (data / DEMO).rename(data / "in MSD's format")
    shutil.rmtree(msd / "imagesTs")
    to_raw_format(msd, data / "Dataset007_Elsewhere")
    folders = {RAW: data / "Dataset007_Elsewhere", MSD: msd}
    for folder in folders.values():
        read_only(folder)
    tree = tmp_path_factory.mktemp("own")
    config = {
        **CONFIG,
        "own_tasks": {
            RAW: {"folder": str(folders[RAW]), "nsd_tolerance_mm": 2},
            MSD: {"folder": str(folders[MSD])},
        },
    }
    arguments = ["--configfile", write_config(tree, "own", config)]
    yield SimpleNamespace(
        tree=tree,
        config=config,
        arguments=arguments,
        folders=folders,
        before={task: snapshot(folder) for task, folder in folders.items()},
    )
    for folder in folders.values():
        read_only(folder, writable=True)


def run(own, *targets, **changes):
    arguments = own.arguments
    if changes:
        arguments = ["--configfile", write_config(own.tree, "changed", own.config, **changes)]
    return quick_snakemake(own.tree, "--cores", "2", *targets, *arguments)


def forecast(own):
    done = run(own, "forecast")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = own.tree / "results/own/forecast"
    with (folder / "forecast.csv").open(newline="") as file:
        return list(csv.DictReader(file)), " ".join((folder / "forecast.md").read_text().split())


def test_before_they_are_planned_the_forecast_says_so(own):
    rows, page = forecast(own)
    assert {row["plan"] for row in rows} == {"not planned yet"}
    assert {row["hours"] for row in rows} == {""}
    assert f"no plan is known yet: {RAW}, {MSD}. Plan first" in page


def test_both_are_planned_and_their_folders_are_only_read(own):
    done = run(own, "plans")
    assert done.returncode == 0, done.stdout + done.stderr
    for task, dataset in DATASETS.items():
        preprocessed = own.tree / f"resources/nnUNet_preprocessed/{dataset}"
        plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
        assert plans["dataset_name"] == dataset
        assert len(list(preprocessed.glob("nnUNetPlans_*.json"))) == 1  # with the overrides
        images = list((own.tree / f"resources/nnUNet_raw/{dataset}/imagesTr").iterdir())
        assert len(images) == 6
        assert all(path.is_symlink() == (task == RAW) for path in images)
        assert snapshot(own.folders[task]) == own.before[task]


def test_then_they_are_forecast_by_their_own_plans(own):
    rows, page = forecast(own)
    assert {row["plan"] for row in rows} == {"planned here"}
    assert all(float(row["train_tflop"]) > 0 for row in rows)
    assert {row["hours"] for row in rows} == {""}, "nobody measured this CPU"
    assert "Left out" not in page
    assert "H100" not in page


def test_the_study_trains_both_and_converts_nothing_again(own):
    jobs, text = plan(own.tree, *own.arguments)
    assert trainings(text) == {(task, arm, 0) for task in DATASETS for arm in CONFIG["arms"]}
    assert jobs["preprocess_task"] == jobs["write_splits"] == 2
    assert not jobs.keys() & {"import_own_task", "convert_task", "fingerprint_task", "plan_task"}


def test_the_study_runs_and_its_tables_have_both(own):
    done = run(own, "tables")
    assert done.returncode == 0, done.stdout + done.stderr
    tables = own.tree / "results/own/tables"
    with (tables / "cases.csv").open(newline="") as file:
        cases = list(csv.DictReader(file))
    assert {row["task"] for row in cases} == set(DATASETS)
    for row in cases:
        assert bool(row["nsd"]) == bool(row["nsd_tolerance_mm"]) == (row["task"] == RAW)
    assert "not enough evidence" in (tables / "claims.md").read_text()
    page = (tables / "comparison.md").read_text()
    assert all(task in page for task in DATASETS)
    for task, folder in own.folders.items():
        assert snapshot(folder) == own.before[task]


def test_the_same_data_in_either_format_are_the_same_to_nnunet(own):
    for name in ("dataset_fingerprint.json", "splits_final.json"):
        contents = [
            json.loads((own.tree / f"resources/nnUNet_preprocessed/{dataset}/{name}").read_text())
            for dataset in DATASETS.values()
        ]
        assert contents[0] == contents[1], name


def test_the_documented_trial_without_a_gpu_runs_to_the_end(own):
    """The block is the page's; only the name and the folder of the task are this test's."""
    page = (ROOT / "docs/how-to/own_dataset.md").read_text()
    block = re.search(r"^```yaml\n(# trial\.yaml\n.*?)^```", page, re.M | re.S)[1]
    block = block.replace("Task501_Mine", RAW).replace("/data/Dataset501_Mine", "{folder}")
    (own.tree / "trial.yaml").write_text(block.replace("{folder}", str(own.folders[RAW])))
    done = quick_snakemake(own.tree, "--cores", "2", "--configfile", own.tree / "trial.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    results = own.tree / "results/trial"
    assert (results / "notebooks/results.html").is_file()
    with (results / "tables/epochs.csv").open(newline="") as file:
        epochs = list(csv.DictReader(file))
    assert {row["arm"] for row in epochs} == {"constant", "progressive"}
    # Validation must not take most of the time: nnU-Net's 50 iterations per epoch did.
    trained, whole = (sum(float(row[key]) for row in epochs) for key in ("train_gflop", "gflop"))
    assert trained > 0.7 * whole


def test_a_folder_that_moved_is_told_in_one_line(own):
    moved = {**own.config["own_tasks"], RAW: {"folder": "/nowhere"}}
    done = run(own, "-n", own_tasks=moved)
    assert done.returncode != 0
    (line,) = said(done.stderr)
    assert line.startswith(f"config: own_tasks.{RAW}.folder: /nowhere, but resources/nnUNet_raw/")


def test_a_folder_that_is_missing_is_told_in_one_line(own):
    tasks = ["Task503_New"]
    done = run(own, "-n", tasks=tasks, own_tasks={"Task503_New": {"folder": "/nowhere"}})
    assert done.returncode != 0
    assert said(done.stderr) == ["config: own_tasks.Task503_New.folder: /nowhere is not a folder"]


def test_a_fault_of_the_data_is_told_by_case_and_makes_nothing(own, tmp_path):
    broken = shutil.copytree(own.folders[RAW], tmp_path / "broken")
    read_only(broken, writable=True)
    (broken / "labelsTr/brain_003.nii.gz").unlink()
    done = run(
        own, "plans", tasks=["Task503_New"], own_tasks={"Task503_New": {"folder": str(broken)}}
    )
    assert done.returncode != 0
    text = done.stderr
    assert "Error: broken: the dataset has 1 fault:" in text
    assert "  brain_003: labelsTr/brain_003.nii.gz is missing" in text
    assert "Traceback" not in text
    assert not list((own.tree / "resources/nnUNet_raw").glob("*503_New/*"))


def test_another_clone_trains_on_linked_data_and_writes_nothing_there(own, tmp_path):
    resources = own.tree / "resources"
    clone = tmp_path / "clone"
    clone.mkdir()
    for path in clone.rglob("*"):
        if path.is_file():
            path.touch()
    (clone / "resources").symlink_to(resources)
    changed = {
        **own.config,
        "study": "linked",
        "tasks": [RAW],
        "arms": {"random": {"trainer": "nnUNetTrainerRandomPatch"}},
        "reference_arm": "random",
    }
    arguments = ("--configfile", write_config(clone, "linked", changed))
    before = snapshot(resources)
    read_only(resources)
    try:
        done = quick_snakemake(clone, "tables", "--cores", "2", *arguments)
    finally:
        read_only(resources, writable=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert snapshot(resources) == before
    assert (clone / "results/linked/tables/comparison.md").is_file()


def test_cleaned_data_are_made_again_only_when_something_is_to_be_trained(own):
    done = run(own, "clean_preprocessed", "clean_archives")
    assert done.returncode == 0, done.stdout + done.stderr
    for task, dataset in DATASETS.items():
        assert re.search(
            rf"^{task}: \d+(\.\d+)? MB of preprocessed data removed$", done.stderr, re.M
        )
        preprocessed = own.tree / f"resources/nnUNet_preprocessed/{dataset}"
        assert {path.suffix for path in preprocessed.iterdir()} == {".json"}
        assert not list(preprocessed.glob("*.manifest.json"))
    assert plan(own.tree, "tables", *own.arguments)[0] == {}
    folds = [f"results/own/runs/{RAW}/constant/fold_{fold}" for fold in (0, 1)]
    finished = {path: path.read_bytes() for path in (own.tree / folds[0]).iterdir()}
    checkpoints = {
        path: path.stat().st_mtime_ns
        for path in own.tree.glob("results/own/nnunet/**/fold_0/*.pth")
    }
    assert len(checkpoints) >= 4
    targets = [f"{fold}/run.json" for fold in folds]
    both = write_config(own.tree, "both", own.config, folds=[0, 1])
    _, text = plan(own.tree, *targets, "--configfile", both)
    assert trainings(text) == {(RAW, "constant", 0), (RAW, "constant", 1)}
    done = run(own, *targets, folds=[0, 1])
    assert done.returncode == 0, done.stdout + done.stderr
    # The finished fold was listed, too, but was not trained again.
    assert {path: path.stat().st_mtime_ns for path in checkpoints} == checkpoints
    assert {path: path.read_bytes() for path in finished} == finished
    assert (own.tree / folds[1] / "summary.json").is_file()
