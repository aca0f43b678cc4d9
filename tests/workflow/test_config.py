"""The configuration: a closed, described schema, the shipped studies, the answers to mistakes."""

import copy
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.tree import dry_run, said, shipped_config
from workflow_scripts.study.config_schema import make_schema
from workflow_scripts.study.config_validation import ConfigError, check_config
from workflow_scripts.study.specification import Study

ROOT = Path(__file__).resolve().parents[2]
SCHEMA_PATH = ROOT / "config" / "schemas" / "config.schema.yaml"
SCHEMA = yaml.safe_load(SCHEMA_PATH.read_text())
STUDIES = sorted([*ROOT.glob("config/studies/*.yaml"), *ROOT.glob("config/tools/*.yaml")])


def load(name):
    return yaml.safe_load((ROOT / f"config/studies/{name}.yaml").read_text())


def problems(config):
    with pytest.raises(ConfigError) as caught:
        check_config(config, SCHEMA_PATH)
    return str(caught.value).splitlines()


def faults(node, path="schema", *, optional=False):
    """Walk a schema; yield open objects, keys without a description, options without a default."""
    if "object" in node.get("type", ""):
        values = node.get("additionalProperties", True)
        if values is True or (values is not False and "propertyNames" not in node):
            yield f"{path} is open"
        if values not in (True, False):
            yield from faults(values, f"{path}.*", optional=path.endswith(".overrides"))
    for key, value in node.get("properties", {}).items():
        here = f"{path}.{key}"
        if not value.get("description"):
            yield f"{here} has no description"
        if not optional and "default" not in value and key not in node.get("required", []):
            yield f"{here} has neither a default nor is it required"
        if "object" in value.get("type", "") and "default" in value and value["default"] != {}:
            yield f"{here}: nested defaults are filled only into {{}}"
        # Omitted overrides and trainer attributes stay as they are, so they need no default.
        yield from faults(value, here, optional=key == "parameters")
    if "items" in node:
        yield from faults(node["items"], f"{path}[]")


def test_the_schema_and_its_page_are_those_of_the_model():
    schema = make_schema()
    assert yaml.safe_load(yaml.safe_dump(schema)) == SCHEMA, (
        "run python -m workflow_scripts.study.document_config"
    )


def test_schema_is_closed_described_and_has_defaults():
    assert list(faults(SCHEMA)) == []


@pytest.mark.parametrize("change", ["description", "additionalProperties", "default"])
def test_the_walk_finds_faults(change):
    broken = copy.deepcopy(SCHEMA)
    target = broken["properties"]["planning"]
    (target["properties"]["planner"] if change == "default" else target).pop(change)
    assert len(list(faults(broken))) == 1


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_shipped_studies_are_valid(path):
    config = shipped_config(path.stem)
    check_config(config, SCHEMA_PATH)
    assert set(config) == set(SCHEMA["properties"])


def test_the_paper_is_ten_tasks_five_folds_nine_arms():
    config = load("paper")
    assert len(config["tasks"]) == 10
    assert config["folds"] == [0, 1, 2, 3, 4]
    assert list(config["arms"])[:3] == ["constant", "progressive", "random"]
    assert len(config["arms"]) == 9
    assert config["training"]["epochs"] * config["training"]["iterations_per_epoch"] == 250_000


def test_an_arm_s_own_length_replaces_that_of_the_section_training():
    config = load("demo")
    check_config(config, SCHEMA_PATH)
    own = {"iterations_per_epoch": 7, "validation_iterations_per_epoch": 2}
    config["arms"]["constant"] |= own
    check_config(config, SCHEMA_PATH)
    study = Study(config, {})
    assert study.training("constant") == study.training("progressive") | own


def test_another_network_has_plans_of_its_own():
    config = load("demo")
    check_config(config, SCHEMA_PATH)
    study = Study(config, {})
    (task,) = study.tasks
    before = study.plans_name(task), study.overrides(task)
    config["planning"]["network"] = "primus_s"
    assert study.overrides(task) == {"network": "primus_s", **before[1]}
    assert study.plans_name(task) != before[0]


def test_defaults_are_filled_at_every_level_and_not_shared():
    first, second = load("paper"), load("paper")
    check_config(first, SCHEMA_PATH)
    check_config(second, SCHEMA_PATH)
    assert first["reference_arm"] == "constant"
    assert first["energy"] == {"country": "DEU", "tracking_mode": "machine", "pue": 1.0}
    assert first["training"]["seed"] == 12345
    assert first["arms"]["random"]["parameters"] == {}
    first["planning"]["overrides"]["all"] = {"batch_size": 4}
    assert second["planning"]["overrides"] == {}


def test_texts_of_the_command_line_are_read_as_numbers():
    config = load("hippocampus")
    config["folds"] = ["0", "3"]
    config["training"]["epochs"] = "7"
    config["validation"] = {"mirroring": "false"}
    config["planning"]["gpu_memory_target_gb"] = "null"
    config["planning"]["overrides"]["all"]["batch_size"] = "4"
    check_config(config, SCHEMA_PATH)
    assert config["folds"] == [0, 3]
    assert config["training"]["epochs"] == 7
    assert config["validation"]["mirroring"] is False
    assert config["planning"]["gpu_memory_target_gb"] is None
    assert config["planning"]["overrides"]["all"]["batch_size"] == 4


MISTAKES = {
    "misspelt key": (
        {"training": {"epoch": 3}},
        "config: training.epoch is not a key; did you mean training.epochs?",
    ),
    "key of another section": (
        {"epochs": 3},
        "config: epochs is not a key; did you mean training.epochs?",
    ),
    "unknown task": (
        {"tasks": ["Task04_Hipocampus"]},
        "config: tasks[0]: 'Task04_Hipocampus' is unknown; did you mean Task04_Hippocampus?",
    ),
    "fold -1": ({"folds": [-1]}, "config: folds[0]: -1 is less than the minimum of 0"),
    "fold as a number": (
        {"folds": 0},
        "config: folds: 0 is not a list. "
        "Cross-validation folds to train: nnU-Net's five (0 to 4), or those that come with an own "
        "task.",
    ),
    "training.seed is not among the seeds": (
        {"seeds": [2, 3]},
        "config: seeds: training.seed (1) is not among them. Add it, or set training.seed to "
        "one of them: the search and the evaluation of scale factors use it",
    ),
    "seed twice": ({"seeds": [12345, 12345]}, "config: seeds: 12345 is listed twice"),
    "no seeds": ({"seeds": []}, "config: seeds: [] should be non-empty"),
    "fold twice": ({"folds": [1, 1]}, "config: folds: 1 is listed twice"),
    "fold that names a folder 1.0": (
        {"folds": [1.0]},
        "config: folds[0]: 1.0 is not a whole number.",
    ),
    "no epochs": (
        {"training": {"epochs": 0}},
        "config: training.epochs: 0 is less than the minimum of 1",
    ),
    "empty section": (
        {"training": None},
        "config: training: null (nothing) is not a section with keys. "
        "Length and settings of every training; an arm may set another length.",
    ),
    "name of an arm": (
        {"arms": {"My arm": {"trainer": "x"}}},
        "config: arms.My arm: the name 'My arm' does not match ^[a-z][a-z0-9_]*$",
    ),
    "parameter of an arm": (
        {"arms": {"constant": {"trainer": "x", "parameters": {"intial_lr": 1}}}},
        "config: arms.constant.parameters.intial_lr is not a key; "
        "did you mean arms.constant.parameters.initial_lr?",
    ),
    "arm without trainer": (
        {"arms": {"constant": {}}},
        "config: arms.constant.trainer is missing. Name of the trainer class: one of "
        "`workflow_scripts/trainers/curricula/arms.py`, or any that nnU-Net finds. "
        "Several arms may share a class with different parameters.",
    ),
    "two equal arms": (
        {"arms": {"constant": {"trainer": "X"}, "other": {"trainer": "X"}}},
        "config: arms.other: identical to arms.constant; change its parameters",
    ),
    "stages that do not fill the training": (
        {
            "arms": {
                "constant": {"trainer": "X"},
                "mine": {
                    "trainer": "Y",
                    "parameters": {
                        "stage_list": [
                            {"patch_size": [8, 8, 8], "batch_size": 2, "epochs": 3},
                            {"patch_size": [16, 8, 8], "batch_size": 2, "epochs": 4},
                        ]
                    },
                },
            }
        },
        "config: arms.mine.parameters.stage_list: its epochs add up to 7, "
        "but training.epochs is 84",
    ),
    "reference arm": (
        {"reference_arm": "constnat"},
        "config: reference_arm: 'constnat' is unknown; did you mean constant?",
    ),
    "override of a task that is not in the study": (
        {"planning": {"overrides": {"Task05_Prostate": {"batch_size": 2}}}},
        "config: planning.overrides: 'Task05_Prostate' is not among the study's tasks",
    ),
    "margin of a task that is not in the study": (
        {"comparison": {"task_margins": {"Task05_Prostate": 0.02}}},
        "config: comparison.task_margins: 'Task05_Prostate' is not among the study's tasks",
    ),
    "task that is not described": (
        {"tasks": ["Task501_Mine"]},
        "config: tasks[0]: 'Task501_Mine' is unknown; describe it in own_tasks",
    ),
    "own task with a misspelt name": (
        {"tasks": ["Task501_Mind"], "own_tasks": {"Task501_Mine": {"folder": "/data"}}},
        "config: tasks[0]: 'Task501_Mind' is unknown; did you mean Task501_Mine?",
    ),
    "own task with MSD's number": (
        {"own_tasks": {"Task004_Mine": {"folder": "/data"}}},
        "config: own_tasks.Task004_Mine: Task04_Hippocampus also has the number 4, by which "
        "nnU-Net identifies datasets; choose a free one",
    ),
    "two own tasks of one number": (
        {
            "own_tasks": {
                "Task501_Mine": {"folder": "/data/mine"},
                "Task501_Yours": {"folder": "/data/yours"},
            }
        },
        "config: own_tasks.Task501_Yours: Task501_Mine also has the number 501, by which nnU-Net "
        "identifies datasets; choose a free one",
    ),
    "name of an own task": (
        {"own_tasks": {"Dataset501_Mine": {"folder": "/data"}}},
        "config: own_tasks.Dataset501_Mine: the name 'Dataset501_Mine' does not match "
        "^Task[0-9]{3}_[A-Za-z0-9]+$",
    ),
    "own task without a folder": (
        {"own_tasks": {"Task501_Mine": {}}},
        "config: own_tasks.Task501_Mine.folder is missing. "
        "Folder in nnU-Net's raw format or in MSD's; it is only read. `~` is the home folder.",
    ),
    "checksum of an own task": (
        {"checksums": {"Task501_Mine": "0" * 32}},
        "config: checksums: 'Task501_Mine' is not one of "
        + ", ".join(SCHEMA["properties"]["checksums"]["propertyNames"]["enum"]),
    ),
    "patch of three axes in 2D": (
        {
            "planning": {
                "configuration": "2d",
                "overrides": {"all": {"patch_size": [16, 32, 32]}},
            }
        },
        "config: planning.overrides.all.patch_size: [16, 32, 32] has 3 axes, but "
        "planning.configuration 2d has 2",
    ),
    "stage of two axes in 3D": (
        {
            "arms": {
                "constant": {"trainer": "nnUNetTrainerConstantPatch"},
                "mine": {
                    "trainer": "nnUNetTrainerListedPatch",
                    "parameters": {
                        "stage_list": [{"patch_size": [8, 8], "batch_size": 2, "epochs": 84}]
                    },
                },
            }
        },
        "config: arms.mine.parameters.stage_list[0].patch_size: [8, 8] has 2 axes, but "
        "planning.configuration 3d_fullres has 3",
    ),
    "the cascade": (
        {"planning": {"configuration": "3d_cascade_fullres"}},
        "config: planning.configuration: 3d_cascade_fullres is not trained, because its network "
        "needs the predictions of all five folds of a finished 3d_lowres training as input. Train "
        "3d_lowres and 3d_fullres, as two studies",
    ),
    "misspelt name of an override": (
        {"planning": {"overrides": {"al": {"batch_size": 2}}}},
        "config: planning.overrides: 'al' is unknown; did you mean all?",
    ),
}


@pytest.mark.parametrize(("change", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_clear_line(change, message):
    assert problems({**load("hippocampus"), **change}) == [message]


def test_an_own_task_may_be_trained_and_overridden():
    config = load("hippocampus")
    config["own_tasks"] = {"Task501_Mine": {"folder": "/data/mine"}}
    config["tasks"].append("Task501_Mine")
    config["planning"] = {"overrides": {"Task501_Mine": {"batch_size": 4}}}
    check_config(config, SCHEMA_PATH)
    assert config["own_tasks"]["Task501_Mine"]["nsd_tolerance_mm"] is None


def test_all_problems_are_listed():
    lines = problems({**load("hippocampus"), "folds": [-7], "zzz": 1, "study": "No spaces"})
    assert len(lines) == 3


def test_what_is_missing_is_named():
    assert [line.split()[1] for line in problems({})] == [
        "arms",
        "folds",
        "study",
        "tasks",
        "training",
    ]


KEYS = (
    st.sampled_from([*SCHEMA["properties"], "trainer", "all", "Task04_Hippocampus", "x"])
    | st.integers()
)
LEAVES = st.none() | st.booleans() | st.integers(-1, 9) | st.floats() | st.text(max_size=4)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@settings(
    max_examples=75,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    st.dictionaries(st.sampled_from([*SCHEMA["properties"], "zzz"]), VALUES, min_size=1, max_size=3)
)
def test_whatever_is_written_gives_a_config_error_or_a_complete_config(change):
    config = {**load("hippocampus"), **copy.deepcopy(change)}
    try:
        check_config(config, SCHEMA_PATH)
    except ConfigError as error:
        assert all(line.startswith("config: ") for line in str(error).splitlines())
    else:
        assert set(config) == set(SCHEMA["properties"])


def test_a_former_path_is_answered_with_the_new_one(tmp_path):
    run = dry_run(tmp_path, "--configfile", "config/config.yaml", "config/studies/demo.yaml")
    assert run.returncode != 0
    assert run.stdout == ""
    assert said(run.stderr) == ["config: config/config.yaml has moved to config/studies/paper.yaml"]


def test_every_former_path_names_a_configuration_that_exists():
    former = {path: yaml.safe_load(path.read_text()) for path in ROOT.glob("config/*.yaml")}
    moved = {}
    for path, content in former.items():
        if path.name != "plotting.yaml":
            assert [*content["moved"]] == [str(path.relative_to(ROOT))]
            moved |= content["moved"]
    assert {ROOT / new for new in moved.values()} <= set(STUDIES)
    assert [line.split()[-1] for line in problems({"moved": moved})] == [*moved.values()]


def test_snakemake_answers_a_mistake_with_these_lines_only(tmp_path):
    study = ["--configfile", "config/studies/hippocampus.yaml"]
    run = dry_run(tmp_path, *study, "--config", "folds=[-1]", "training={epoch: 3}")
    assert run.returncode != 0
    assert run.stdout == ""
    assert said(run.stderr) == [
        "config: folds[0]: -1 is less than the minimum of 0",
        "config: training.epoch is not a key; did you mean training.epochs?",
    ]
