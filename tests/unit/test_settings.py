"""Typed settings of the configuration, and the interface required of a trainer."""

from collections import Counter
from dataclasses import FrozenInstanceError, fields

import pytest

from helpers.tree import shipped_config
from workflow_scripts.common.nnunet_setup import find_trainer
from workflow_scripts.common.trainer_protocol import CurriculumTrainer, as_curriculum_trainer
from workflow_scripts.records.energy_settings import EnergySettings
from workflow_scripts.records.run_reader import without_length
from workflow_scripts.study.config_validation import check_config
from workflow_scripts.study.document_config import SCHEMA
from workflow_scripts.study.settings import RunSettings, TrainingSettings
from workflow_scripts.study.specification import RunSpec, Study
from workflow_scripts.trainers.curricula import arms
from workflow_scripts.trainers.curricula.schedules.patch_plan import PatchPlan
from workflow_scripts.trainers.curricula.schedules.planner import plan_schedule
from workflow_scripts.trainers.curricula.schedules.settings import (
    BatchSettings,
    CurriculumSettings,
    GrowthSettings,
)
from workflow_scripts.trainers.curricula.standalone.schema import PARAMETERS

LENGTH = {
    "epochs": 4,
    "iterations_per_epoch": 3,
    "validation_iterations_per_epoch": 2,
    "seed": 7,
}


def classes():
    return [kind for name, kind in vars(arms).items() if name.startswith("nnUNetTrainer")]


@pytest.mark.parametrize("kind", classes(), ids=lambda kind: kind.__name__)
def test_a_trainer_has_the_defaults_of_its_settings(kind):
    own = [settings for settings in PARAMETERS if hasattr(kind, fields(settings)[0].name)]
    assert own[:2] == [BatchSettings, GrowthSettings]
    for settings in own:
        differing = {
            field.name: getattr(kind, field.name)
            for field in fields(settings)
            if getattr(kind, field.name) != field.default
        }
        assert set(differing) <= {
            *("curriculum", "training_oversample_foreground_percent"),
            "batched_planned_patch",
        }


def test_a_value_that_a_field_does_not_list_is_refused():
    with pytest.raises(ValueError, match="unknown pacing 'slow'; known are equal, volume"):
        GrowthSettings(pacing="slow")


def test_settings_of_a_run_are_read_from_the_sections_of_the_configuration():
    training = {**LENGTH, "device": "cpu", "deterministic": True}
    energy = {"country": "DEU", "tracking_mode": "process", "pue": 1.2}
    settings = RunSettings.of(training, energy, mirroring=True, threads=3)
    assert settings.energy == EnergySettings("DEU", "process", 1.2)
    assert (settings.training.device, settings.training.deterministic) == ("cpu", True)
    assert settings.training.threads == 3
    length = settings.training.length
    assert (length.epochs, length.iterations_per_epoch, length.seed) == (4, 3, 7)
    with pytest.raises(FrozenInstanceError):
        settings.mirroring = False


def test_a_key_that_nobody_knows_is_refused():
    with pytest.raises(TypeError, match="lerning_rate"):
        TrainingSettings(**LENGTH, lerning_rate=0.1)


def test_the_folder_of_a_fold_is_named_as_nnunet_names_it():
    run = RunSpec("s", "Task98_Tiny", "Dataset998_Tiny", "a", "T", 3, "3d_fullres", "plans")
    folder = run.fold_folder("results/s/nnunet/a")
    assert str(folder) == "results/s/nnunet/a/Dataset998_Tiny/T__plans__3d_fullres/fold_3"
    assert run.parameters == {}


# --- lengths of the shipped sweeps


@pytest.mark.parametrize(
    ("name", "patch", "pooling"),
    [("budget_sweep", (32, 40, 32), (3, 3, 3)), ("budget_sweep_acdc", (8, 80, 80), (1, 4, 4))],
)
def test_every_stage_has_equally_many_epochs_at_every_length_of_a_sweep(name, patch, pooling):
    """As in the papers' budgets, which shorten the epochs and keep their number."""
    config = shipped_config(name)
    check_config(config, SCHEMA)
    study = Study(config, {})
    plan = PatchPlan(patch, pooling, config["planning"]["overrides"]["all"]["batch_size"])
    assert plan.patch_size == tuple(config["planning"]["overrides"]["all"]["patch_size"])
    for arm, chosen in config["arms"].items():
        length = TrainingSettings(**study.training(arm)).length
        assert arm == f"{without_length(arm)}_{length.epochs * length.iterations_per_epoch}"
        curriculum = CurriculumSettings.of(getattr(arms, chosen["trainer"]), {})
        schedule = plan_schedule(plan, length, curriculum)
        starts = map(schedule.iterations_before, range(schedule.epochs))
        epochs = Counter(map(schedule.stage_of_iteration, starts))
        assert set(epochs) == set(range(len(schedule.stages)))
        assert len(set(epochs.values())) == 1


# --- interface required of a trainer


@pytest.mark.parametrize("kind", classes(), ids=lambda kind: kind.__name__)
def test_every_trainer_of_this_project_is_a_curriculum_trainer(kind):
    assert isinstance(kind, CurriculumTrainer), "the class has all attributes of its instances"
    trainer = kind.__new__(kind)
    assert as_curriculum_trainer(trainer) is trainer
    assert not trainer.stop_requested
    assert trainer.iterations_resumed == 0
    assert dict(trainer.pseudo_dice_by_scale) == {}
    if "Scale" not in kind.__name__:
        assert trainer.scale_of_step("train") is None
        assert trainer.scale_of_step("val") is None


@pytest.mark.parametrize("name", ["nnUNetTrainer", "nnUNetTrainerAdam"])
def test_a_trainer_of_nnunet_is_none(name):
    kind = find_trainer(name)
    assert not isinstance(kind, CurriculumTrainer)
    assert as_curriculum_trainer(kind.__new__(kind)) is None
