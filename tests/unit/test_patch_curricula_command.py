"""`python -m patch_curricula`: its folder, schedules and messages."""

import ast
import csv
import json
import re
import tomllib

import pytest
from nnunetv2.training.nnUNetTrainer.variants.training_length import nnUNetTrainer_Xepochs

from helpers.environments import statements, top_level
from helpers.tree import ROOT
from workflow_scripts.trainers.curricula.__main__ import EXTERNAL, main
from workflow_scripts.trainers.curricula.standalone.trainers import ARMS, CLASSES, LENGTHS

FOLDER = ROOT / "workflow_scripts/trainers/curricula"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]


@pytest.fixture
def plans(tmp_path):
    architecture = {"network_class_name": "", "arch_kwargs": {"strides": STRIDES}}
    planned = {"patch_size": [8, 8, 8], "batch_size": 2, "architecture": architecture}
    path = tmp_path / "plans.json"
    path.write_text(json.dumps({"configurations": {"3d_fullres": planned}}))
    return path


def table(text):
    lines = [line.strip("| ").replace(" | ", "\t") for line in text.splitlines()]
    return list(csv.DictReader([lines[0], *lines[2:]], delimiter="\t"))


def test_alone_it_prints_the_folder_for_nnunet(capsys):
    main([])
    assert capsys.readouterr().out == f"{EXTERNAL}\n"
    assert [path.name for path in EXTERNAL.glob("*.py")] == ["patch_curricula_trainers.py"]


def test_a_schedule_by_hand(plans, capsys):
    """Sizes of 4, 4, 8 and so on; as many voxels as 2 × 8³ in each batch; 1000 epochs."""
    main(["plan", str(plans), "--arm", "progressive"])
    rows = table(capsys.readouterr().out)
    assert [row["patch size"] for row in rows] == ["8 × 4 × 4", "8 × 8 × 4", "8 × 8 × 8"]
    assert [row["memory"] for row in rows] == ["0.25", "0.50", "1.00"]
    assert {row["batch size"] for row in rows} == {"2"}
    assert sum(int(row["epochs"]) for row in rows) == 1000
    assert sum(int(row["iterations"]) for row in rows) == 250_000


def test_a_schedule_with_variables_and_a_length(plans, capsys, monkeypatch):
    monkeypatch.setenv("nnUNet_curriculum_max_batch", "5")
    main(["plan", str(plans), "--arm", "nnUNetTrainerProgressivePerformancePatch_10epochs"])
    rows = table(capsys.readouterr().out)
    assert [row["batch size"] for row in rows] == ["5", "5", "4", "2"]
    assert rows[0]["memory"] == f"{5 * 4**3 / (2 * 8**3):.2f}"
    assert sum(int(row["epochs"]) for row in rows) == 10


def test_drawn_sizes_have_no_epochs(plans, capsys):
    main(["plan", str(plans), "--arm", "random"])
    assert {row["epochs"] for row in table(capsys.readouterr().out)} == {"drawn"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arm", "progresive"], "unknown arm 'progresive'; known are constant, "),
        (["--arm", "random", "--configuration", "2d"], "Requested configuration 2d not found"),
    ],
)
def test_a_mistake_is_one_line(plans, arguments, message):
    with pytest.raises(SystemExit, match=re.escape(message)) as stop:
        main(["plan", str(plans), *arguments])
    assert "\n" not in str(stop.value)


def test_lengths_are_those_of_nnunet():
    stock = {
        name.removeprefix("nnUNetTrainer")
        for name in vars(nnUNetTrainer_Xepochs)
        if re.fullmatch(r"nnUNetTrainer_\d+epochs?", name)
    }
    assert set(LENGTHS) == stock
    assert len(CLASSES) == len(ARMS) * (1 + len(stock))
    for name, kind in CLASSES.items():
        assert kind.__name__ == name
        assert vars(__import__(kind.__module__, fromlist=[name]))[name] is kind, "can be pickled"


def test_the_package_has_every_module():
    packages = {
        ".".join(["patch_curricula", *path.parent.relative_to(FOLDER).parts])
        for path in FOLDER.rglob("__init__.py")
    }
    assert packages == set(PROJECT["tool"]["setuptools"]["packages"])


def test_the_package_requires_what_it_imports():
    names = {"yaml": "pyyaml"}
    found = {
        top_level(statement)
        for path in FOLDER.rglob("*.py")
        for statement in statements(ast.parse(path.read_text()))
    } - {"patch_curricula"}
    required = {re.match(r"[\w-]+", line)[0] for line in PROJECT["project"]["dependencies"]}
    assert {names.get(name, name.replace("_", "-")) for name in found} == required
