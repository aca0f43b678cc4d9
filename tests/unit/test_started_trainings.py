"""A configuration that would train a finished or begun training differently is refused early."""

import copy
import json
from functools import cache
from pathlib import Path

import pytest
import yaml

from workflow_scripts.common.errors import ConfigError
from workflow_scripts.common.hashing import json_hash
from workflow_scripts.study.config_validation import check_config
from workflow_scripts.study.specification import RunSpec, Study
from workflow_scripts.study.started_trainings import changes_of, check_unchanged
from workflow_scripts.study.tasks import read_register

ROOT = Path(__file__).resolve().parents[2]
TASK = "Task04_Hippocampus"
RUN = (TASK, "progressive", 0, 12345)
PLANS, SPLITS = {"configurations": {}}, [{"train": ["a"], "val": ["b"]}]
CHANGES = {
    "epochs": {"training": {"epochs": 7}},
    "iterations_per_epoch": {"training": {"iterations_per_epoch": 7}},
    "validation_iterations_per_epoch": {"training": {"validation_iterations_per_epoch": 7}},
    "seed": {"training": {"seed": 7}},
    "precision": {"training": {"precision": "bf16"}},
    "deterministic": {"training": {"deterministic": True}},
    "trainer": {"arms": {"progressive": {"trainer": "nnUNetTrainerRandomPatch"}}},
    "parameters": {
        "arms": {
            "progressive": {
                "trainer": "nnUNetTrainerProgressivePatch",
                "parameters": {"initial_lr": 0.1},
            }
        }
    },
    "plans": {"planning": {"overrides": {"all": {"batch_size": 3}}}},
    "configuration": {"planning": {"configuration": "3d_lowres"}},
}


@cache
def checked():
    """Return the study's configuration with all defaults; reading the schema takes longest."""
    arms = {
        "constant": {"trainer": "nnUNetTrainerConstantPatch"},
        "progressive": {"trainer": "nnUNetTrainerProgressivePatch"},
    }
    config = {"study": "own", "tasks": [TASK], "folds": [0, 1], "arms": arms}
    config |= {"training": {"epochs": 4, "device": "cpu", "precision": "fp32"}}
    check_config(config, ROOT / "config/schemas/config.schema.yaml")
    return config


def study_of(**changes):
    config = copy.deepcopy(checked())
    for section, values in changes.items():
        config[section] |= values
    for arm in config["arms"].values():
        arm |= {"epochs": None, "parameters": {}} | arm
    config["seeds"] = [config["training"]["seed"]]
    return Study(config, read_register(ROOT / "config/tables/datasets.tsv"))


def record_of(run):
    task, arm, fold, seed = run
    suffix = "" if seed == 12345 else f"_seed_{seed}"
    return Path(f"results/own/runs/{task}/{arm}/fold_{fold}{suffix}/run.json")


def identity_of(study, run):
    """Return the fields of `identity.json` that the configuration determines."""
    task, arm, fold, _ = run
    training = study.training(arm)
    keys = ("epochs", "iterations_per_epoch", "validation_iterations_per_epoch", "seed")
    spec = study.run(task, arm, fold)
    return {
        **{key: spec[key] for key in ("task", "trainer", "fold", "configuration")},
        **{key: training[key] for key in (*keys, "precision")},
        "parameters": study.arm(arm)["parameters"],
        "plans_hash": json_hash(PLANS),
        "splits_hash": json_hash(SPLITS[0]),
        **{"trainer_code": "0" * 16, "python": "3.0", "torch": "0"},
    }


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def finish(study, run=RUN, cleaned_up=False):
    """Write the records of a finished training; nnU-Net's folder may be gone."""
    task, arm, fold, _ = run
    spec, identity = study.run(task, arm, fold), identity_of(study, run)
    write(record_of(run), {**identity, "plans": spec["plans"], "study": "own", "cases": 1})
    if not cleaned_up:
        folder = RunSpec(**spec).fold_folder(study.results(arm))
        write(folder / "identity.json", identity)
        (folder / "checkpoint_final.pth").touch()


@pytest.fixture(autouse=True)
def prepared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path(study_of().plans(TASK)), PLANS)
    write(Path(study_of().splits(TASK)), SPLITS)


@pytest.mark.parametrize("cleaned_up", [False, True], ids=["whole", "cleaned up"])
@pytest.mark.parametrize("name", CHANGES)
def test_every_key_that_determines_the_weights_is_compared(name, cleaned_up):
    finish(study_of(), cleaned_up=cleaned_up)
    assert changes_of(study_of(), RUN, record_of(RUN)) == []
    changed = study_of(**CHANGES[name])
    run = (*RUN[:3], changed.seeds[0])
    changes = changes_of(changed, run, record_of(RUN))
    if (name, cleaned_up) == ("deterministic", True):
        assert changes == []  # only nnU-Net's folder has it
        return
    (change,) = changes
    assert change.startswith(f"{name} was ")


@pytest.mark.parametrize(("name", "content"), [("plans", {"other": 1}), ("splits", [{"val": []}])])
def test_other_plans_or_folds_under_the_same_name_are_noticed(name, content):
    finish(study_of())
    write(Path(getattr(study_of(), name)(TASK)), content)
    (change,) = changes_of(study_of(), RUN, record_of(RUN))
    assert change.startswith(f"{name}_hash was ")
    Path(getattr(study_of(), name)(TASK)).unlink()  # they will be made again
    assert changes_of(study_of(), RUN, record_of(RUN)) == []


UNIMPORTANT = {
    "checkpoints": {"training": {"checkpoint_minutes": 1, "wait_minutes": 1}},
    "threads": {"training": {"threads": 3}},
    "energy": {"energy": {"country": "FRA", "tracking_mode": "process"}},
    "validation": {"validation": {"mirroring": False}},
    "precision found by the job": {"training": {"precision": "auto"}},
    "device found by the job": {"training": {"device": "auto", "precision": "auto"}},
    "another arm": {"arms": {"random": {"trainer": "nnUNetTrainerRandomPatch"}}},
}


@pytest.mark.parametrize("name", UNIMPORTANT)
def test_what_does_not_determine_the_weights_is_not(name):
    finish(study_of())
    assert changes_of(study_of(**UNIMPORTANT[name]), RUN, record_of(RUN)) == []


@pytest.mark.parametrize(
    ("used", "changes"), [(2, []), (8, []), (9, ["threads was 9 and is now 8"])]
)
def test_a_deterministic_training_may_have_had_fewer_cores_than_threads(used, changes):
    """Snakemake gives a job no more threads than `--cores`."""
    study = study_of(training={"deterministic": True, "threads": 8})
    finish(study)
    path = next(Path("results").rglob("identity.json"))
    write(path, {**json.loads(path.read_text()), "deterministic": True, "threads": used})
    assert changes_of(study, RUN, record_of(RUN)) == changes


def test_a_training_on_the_cpu_is_none_on_a_gpu():
    finish(study_of())
    changed = study_of(training={"device": "cuda", "precision": "auto"})
    (change,) = changes_of(changed, RUN, record_of(RUN))
    assert change == "precision was fp32 and is now amp"


def test_a_training_of_an_earlier_version_lacks_newer_fields():
    finish(study_of())
    content = json.loads(record_of(RUN).read_text())
    del content["validation_iterations_per_epoch"], content["plans"]
    write(record_of(RUN), content)
    assert changes_of(study_of(), RUN, record_of(RUN)) == []


def test_a_training_that_was_begun_is_compared_too():
    study = study_of()
    assert changes_of(study_of(**CHANGES["epochs"]), RUN, record_of(RUN)) == []
    finish(study)
    record_of(RUN).unlink()
    (change,) = changes_of(study_of(**CHANGES["epochs"]), RUN, record_of(RUN))
    assert change == "epochs was 4 and is now 7"
    for path in Path("results").rglob("*.pth"):  # it ended before its first checkpoint
        path.unlink()
    assert changes_of(study_of(**CHANGES["epochs"]), RUN, record_of(RUN)) == []


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_broken_record_is_left_to_its_reader(text):
    finish(study_of(), cleaned_up=True)
    record_of(RUN).write_text(text)
    assert changes_of(study_of(**CHANGES["epochs"]), RUN, record_of(RUN)) == []


def test_the_message_names_each_difference_once_with_its_trainings():
    study = study_of()
    for run in study.runs:
        finish(study, run)
    one = {"constant": {"trainer": "nnUNetTrainerConstantPatch", "epochs": 9}}
    changed = study_of(training={"epochs": 7}, arms=one)
    with pytest.raises(ConfigError) as error:
        check_unchanged(changed, RUN, record_of)
    first, *rest, _ = str(error.value).splitlines()
    assert first.startswith("Error: the study own has 4 trainings ")
    folds = [f"{TASK} {{arm}} fold {fold}" for fold in (0, 1)]
    assert rest == [
        f"  epochs was 4 and is now {epochs}: {', '.join(folds).format(arm=arm)}"
        for arm, epochs in (("constant", 9), ("progressive", 7))
    ]
    check_unchanged(study, RUN, record_of)


def test_the_shipped_studies_have_no_other_devices_than_are_compared():
    schema = yaml.safe_load((ROOT / "config/schemas/config.schema.yaml").read_text())
    training = schema["properties"]["training"]["properties"]
    assert set(training["device"]["enum"]) == {"auto", "cpu", "cuda"}
    assert set(training["precision"]["enum"]) == {"auto", "fp32", "bf16"}
