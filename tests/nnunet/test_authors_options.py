"""Options of an arm by which the authors of the patch curricula deviate from nnU-Net."""

import json

import numpy as np
import pytest
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert3DTo2DTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from helpers.folds import Folds
from workflow_scripts.common.nnunet_setup import find_trainer
from workflow_scripts.common.trainer_protocol import mirrors

CONSTANT = "nnUNetTrainerConstantPatch"
PROGRESSIVE = "nnUNetTrainerProgressivePatch"
FLAT = [8, 32, 32]  # more than three times as wide as high: nnU-Net augments slice by slice


@pytest.fixture
def flat(tiny):
    """Return a factory of trainers with a flat planned patch, whose smallest patch is not flat."""

    def trainer(name=PROGRESSIVE, patch=FLAT, **options):
        plans = tiny.plans
        plans["configurations"]["3d_fullres"] |= {"patch_size": list(patch)}
        return tiny.trainer(name, plans=plans, **{"epochs": 20} | options)

    return trainer


def kinds(plan):
    """Return the settings of a stage's transforms that depend on the kind of augmentation."""
    transforms = plan.transforms.transforms
    spatial = next(t for t in transforms if type(t).__name__ == "SpatialTransform")
    by_slice = any(isinstance(t, Convert3DTo2DTransform) for t in transforms)
    return by_slice, spatial.rotation, tuple(map(int, plan.initial_patch_size))


def test_augmentation_per_stage_is_what_nnunet_chooses_for_each_patch(flat):
    """It is that of nnU-Net's own trainer, if planned at the stage's size."""
    plans = flat(faithful_augmentation_per_stage=True)._loading_plans()[0]
    assert plans[-1].stage.patch_size == tuple(FLAT)
    for plan in plans:
        stock = flat(CONSTANT, patch=plan.stage.patch_size)
        rotation, by_slice, size, _ = (
            nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size(stock)
        )
        assert kinds(plan) == (by_slice, rotation, tuple(map(int, size))), plan.stage
    assert {kinds(plan)[0] for plan in plans} == {False, True}


def test_augmentation_stays_that_of_the_planned_patch_by_default(flat):
    trainer = flat()
    plans = trainer._loading_plans()[0]
    assert {kinds(plan)[:2] for plan in plans} == {(True, kinds(plans[-1])[1])}
    assert trainer.configuration_manager.patch_size == FLAT


def test_augmentation_per_stage_leaves_the_plan_as_it_was(flat):
    trainer = flat(faithful_augmentation_per_stage=True)
    manager = trainer.configuration_manager
    trainer._loading_plans()
    assert trainer.configuration_manager is manager
    assert trainer.configuration_manager.patch_size == FLAT
    assert trainer.inference_allowed_mirroring_axes == (0, 1, 2)


@pytest.mark.parametrize("per_stage", [False, True])
def test_without_mirror_axes_neither_training_nor_prediction_mirrors(flat, per_stage):
    for axes, mirrored in (("all", True), ("none", False)):
        trainer = flat(mirror_axes=axes, faithful_augmentation_per_stage=per_stage)
        for plan in trainer._loading_plans()[0]:
            found = [t for t in plan.transforms.transforms if isinstance(t, MirrorTransform)]
            assert bool(found) == mirrored, (axes, plan.stage)
        expected = (0, 1, 2) if mirrored else None
        assert trainer.inference_allowed_mirroring_axes == expected


def test_the_final_validation_mirrors_only_where_the_training_did(prepared, tmp_path):
    folds = Folds(prepared, tmp_path)
    short = {"epochs": 1, "iterations_per_epoch": 1}
    call = folds.call("study", parameters={"mirror_axes": "none"}, **short) | {"mirroring": True}
    assert folds.run(call, call) == ["ok", "ok"], "the second finds it finished"
    assert json.loads((tmp_path / "study/run.json").read_text())["validation_mirroring"] is False
    ledger = next(tmp_path.glob("study/nnunet/*/*/fold_0/ledger.jsonl")).read_text()
    entries = [json.loads(line) for line in ledger.splitlines()]
    ends = [
        entry for entry in entries if entry.get("phase") == "validation" and "mirroring" in entry
    ]
    assert [entry["mirroring"] for entry in ends] == [False], "it was validated once"


def test_which_arms_may_mirror():
    class Without(find_trainer(PROGRESSIVE)):
        mirror_axes = "none"

    assert mirrors(nnUNetTrainer, {})
    assert mirrors(find_trainer(PROGRESSIVE), {"plus_seed": 2})
    assert not mirrors(find_trainer(PROGRESSIVE), {"mirror_axes": "none"})
    assert not mirrors(Without, {})
    assert mirrors(Without, {"mirror_axes": "all"})


@pytest.mark.parametrize(("share", "expected"), [(None, 1), (0.5, 2), (0.0, 0), (1.0, 4)])
def test_validation_patches_are_forced_to_hold_foreground_as_wanted(tiny, share, expected):
    """In a batch of four; None is nnU-Net's third."""
    trainer = tiny.trainer(PROGRESSIVE, validation_oversample_foreground_percent=share)
    training, validation = trainer._loading_plans()
    assert sum(validation.forced) == expected
    assert np.all([sum(plan.forced) == 2 for plan in training]), "training keeps the authors' half"
