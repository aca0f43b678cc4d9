"""Parameters of the packaged trainers from variables of the environment."""

import pytest

from workflow_scripts.trainers.curricula import arms
from workflow_scripts.trainers.curricula.standalone.environment import read_parameters

TRAINER = arms.nnUNetTrainerProgressivePerformancePatch


def set_variables(monkeypatch, **values):
    for name, value in values.items():
        monkeypatch.setenv(f"nnUNet_curriculum_{name}", value)


def test_nothing_set_changes_nothing():
    assert read_parameters(TRAINER) == {}


def test_values_are_read_as_in_a_configuration(monkeypatch):
    set_variables(
        monkeypatch,
        max_batch="8",
        mirror_axes="none",
        initial_lr="null",
        weight_decay="3e-5",
        augment_on_device="true",
    )
    assert read_parameters(TRAINER) == {
        "max_batch": 8,
        "mirror_axes": "none",
        "initial_lr": None,
        "weight_decay": 3e-5,
        "augment_on_device": True,
    }


def test_lists_are_read(monkeypatch):
    stages = [{"patch_size": [8, 8, 8], "batch_size": 2, "epochs": 3}]
    set_variables(monkeypatch, stage_list=str(stages), frequency_fractions='["3/7", 1]')
    assert read_parameters(arms.nnUNetTrainerLowFrequency) == {
        "stage_list": stages,
        "frequency_fractions": ["3/7", 1],
    }


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_btach", "8", "max_btach is not a key; did you mean max_batch?"),
        ("max_batch", "0", "max_batch: 0 is less than the minimum of 1"),
        ("max_batch", "few", "max_batch: 'few' is not a whole number or null"),
        ("mirror_axes", "no", "mirror_axes: 'no' is not one of all, none"),
        ("augment_on_device", "1", "augment_on_device: 1 is not true or false"),
        ("stage_list", "[", "stage_list: '[' is not a list or null"),
        ("stage_list", "[{epochs: 1}]", "stage_list[0].batch_size is missing"),
        ("replay", "mixed", "replay is not a key; the keys there are "),
        ("curriculum", "random", "curriculum is not a key"),
    ],
)
def test_a_mistake_is_named_as_in_a_configuration(monkeypatch, name, value, message):
    set_variables(monkeypatch, **{name: value})
    with pytest.raises(ValueError) as error:
        read_parameters(TRAINER)
    assert str(error.value).startswith(f"nnUNet_curriculum_{message}")


def test_every_mistake_has_its_line(monkeypatch):
    set_variables(monkeypatch, max_batch="0", mirror_axes="no")
    with pytest.raises(ValueError, match="minimum") as error:
        read_parameters(TRAINER)
    assert sorted(line.partition(":")[0] for line in str(error.value).splitlines()) == [
        "nnUNet_curriculum_max_batch",
        "nnUNet_curriculum_mirror_axes",
    ]
