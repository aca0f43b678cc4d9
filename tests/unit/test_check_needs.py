"""A study is checked before its first training, and all faults are reported together."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from helpers.tree import ROOT
from workflow_scripts.common.errors import UserError
from workflow_scripts.forecast import check_needs as module
from workflow_scripts.forecast.check_needs import check_needs, preprocessed_bytes
from workflow_scripts.forecast.planned_study import CheckedStudy
from workflow_scripts.forecast.plans import published_plans
from workflow_scripts.planning import preprocess_task

TASK = "Task04_Hippocampus"
PLANS = published_plans(ROOT / "config/published/nnunet_plans.tsv")
ARMS = {
    "constant": {"trainer": "nnUNetTrainerConstantPatch", "parameters": {}, "epochs": None},
    "adam": {
        "trainer": "nnUNetTrainerConstantPatch",
        "parameters": {"optimizer_name": "adamw"},
        "epochs": None,
    },
}
TRAINING = {
    "epochs": 10,
    "iterations_per_epoch": 5,
    "validation_iterations_per_epoch": 1,
    "seed": 1,
}


RESULTS = Path("results/s")


def study(root, arms=ARMS, overrides=None, tasks=(TASK,)):
    """Return the rule's parameters for a study that has not begun."""
    return CheckedStudy(
        study="s",
        tasks=list(tasks),
        folds=[0, 1],
        seeds=1,
        arms=arms,
        configuration="3d_fullres",
        overrides={task: overrides or {} for task in tasks},
        training=TRAINING,
        mirroring=True,
        own_plans={task: str(root / task / "nnUNetPlans.json") for task in tasks},
        published=list(tasks),
        records=[
            [task, arm, str(root / f"{task}/{arm}/{fold}/run.json")]
            for task in tasks
            for arm in arms
            for fold in (0, 1)
        ],
        manifests={task: str(root / f"{task}.manifest.json") for task in tasks},
        splits={task: str(root / f"{task}_splits.json") for task in tasks},
        device="cpu",
    )


def faults(params):
    with pytest.raises(UserError) as error:
        check_needs(params, PLANS, RESULTS)
    return str(error.value).split("\n  ")


def test_what_is_made_already_needs_no_room(tmp_path):
    params = study(tmp_path)
    needs = check_needs(params, PLANS, RESULTS)
    # 260 cases of 36 × 50 × 35 voxels in docs/how-to/storage.md's table.
    assert needs["preprocessed_bytes"] == pytest.approx(82e6, rel=0.01)
    # 5.6 million weights, with one state each for SGD and three for AdamW; two files for each run.
    weights = needs["checkpoint_bytes"] / (4 * 2 * 2 * (2 + 4))
    assert 5.2e6 < weights < 5.7e6
    Path(params.manifests[TASK]).touch()
    for _, arm, record in params.records:
        if arm == "adam":
            Path(record).parent.mkdir(parents=True)
            Path(record).touch()
    left = check_needs(params, PLANS, RESULTS)
    assert left["preprocessed_bytes"] == 0
    assert left["checkpoint_bytes"] == pytest.approx(needs["checkpoint_bytes"] * 2 / 6)


def test_the_estimate_is_that_of_the_documentation():
    page = (ROOT / "docs/how-to/storage.md").read_text()
    for task, plan in PLANS.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| {task}")]
        told = row.split("|")[4].partition("(")[2].strip(") ") or row.split("|")[4]
        assert float(f"{preprocessed_bytes(plan, '3d_fullres') / 1e9:.2g}") == float(told), task


def test_all_faults_are_told_at_once(tmp_path, monkeypatch):
    arms = ARMS | {
        "plus": {
            "trainer": "nnUNetTrainerProgressivePlusPatch",
            "parameters": {"plus_seed": 99},
            "epochs": None,
        },
        "listed": {
            "trainer": "nnUNetTrainerListedPatch",
            "parameters": {
                "stage_list": [{"patch_size": [16, 17, 16], "batch_size": 2, "epochs": 10}]
            },
            "epochs": None,
        },
    }
    params = study(tmp_path, arms)
    folds = [{"train": ["a", "b_seg"], "val": ["c"]}]
    Path(params.splits[TASK]).write_text(json.dumps(folds))
    monkeypatch.chdir(tmp_path)
    full = SimpleNamespace(free=1_000_000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: full)
    told = faults(params)
    assert told[0] == "the study s cannot be trained as configured, 4 faults:"
    found = "\n".join(told)
    assert "arm plus: Dataset004_Hippocampus, nnUNetTrainerProgressivePlusPatch: plus_seed" in found
    assert "arm listed: " in found
    assert "is not a multiple of" in found
    assert f"{TASK}, case b_seg: nnU-Net treats files ending in _seg" in found
    assert f"the disk with {tmp_path} has 1.00 MB free, but the study needs about " in found
    assert "for the preprocessed data of 1 task + " in found
    assert "for the checkpoints of 4 trainings" in found


def test_an_unknown_trainer_is_one_fault_among_others(tmp_path):
    arms = {"a": {"trainer": "nnUNetTrainerNobodys", "parameters": {}, "epochs": None}, **ARMS}
    told = faults(study(tmp_path, arms))
    assert told[0].endswith("1 fault:")
    assert told[1].startswith("arm a: trainer nnUNetTrainerNobodys is neither in ")


def test_an_override_that_does_not_fit_one_task_does_not_hide_another(tmp_path):
    tasks = (TASK, "Task02_Heart")
    told = faults(study(tmp_path, overrides={"patch_size": [20, 20, 20]}, tasks=tasks))
    assert told[0].endswith("2 faults:")
    assert "Dataset004_Hippocampus" in told[1]
    assert "Dataset002_Heart" in told[2]


def test_disks_are_counted_one_by_one(tmp_path, monkeypatch):
    wanted = {"data": (60, tmp_path / "a/b"), "checkpoints": (60, tmp_path / "c")}
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))
    (fault,) = module.check_disk(wanted)
    assert "for data + " in fault
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=120))
    assert module.check_disk(wanted) == []


def test_a_case_that_the_memory_cannot_hold_is_refused(monkeypatch):
    fingerprint = {
        "foreground_intensity_properties_per_channel": {"0": {}, "1": {}},
        "shapes_after_crop": [[100, 500, 500], [10, 10, 10]],
    }
    memory = SimpleNamespace(total=800_000_000)
    monkeypatch.setattr(preprocess_task.psutil, "virtual_memory", lambda: memory)
    preprocess_task.check_memory(fingerprint)
    memory.total -= 1
    with pytest.raises(UserError, match=r"50 megavoxels \(all channels\)\. Preprocessing it takes"):
        preprocess_task.check_memory(fingerprint)


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.99}),
        ("adamw", torch.optim.AdamW, {"amsgrad": True}),
        ("primus", torch.optim.AdamW, {"amsgrad": False}),
    ],
)
def test_the_states_of_an_optimiser_are_those_that_torch_stores(name, kind, options):
    """With the options of nnU-Net's trainers."""
    weight = torch.nn.Parameter(torch.ones(5))
    optimiser = kind([weight], lr=0.01, **options)
    weight.sum().backward()
    optimiser.step()
    stored = [value for value in optimiser.state[weight].values() if value.shape == weight.shape]
    assert len(stored) == module.STATES[name]
