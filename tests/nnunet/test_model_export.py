"""Exported models: plain nnU-Net predicts with them as with the original, to the bit."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.model_sharing.model_import import install_model_from_zip_file

from workflow_scripts.common import nnunet_setup
from workflow_scripts.trainers.curricula.standalone.model_export import export_model

PROGRESSIVE = "nnUNetTrainerProgressivePatch"
TRAININGS = {
    "progressive": (PROGRESSIVE, {}),
    "without mirroring": (PROGRESSIVE, {"mirror_axes": "none"}),
    "low frequencies": ("nnUNetTrainerLowFrequency", {}),
}


def trained(tiny, name, parameters=None):
    """Return nnU-Net's model folder of a training, with what its validation would add."""
    trainer = tiny.trainer(name, iterations=1, **(parameters or {}))
    trainer.run_training()
    fold = Path(trainer.output_folder)
    (fold / "progress.png").touch()
    (fold / "validation").mkdir(exist_ok=True)
    summary = {"foreground_mean": {"Dice": 0.54321}}
    (fold / "validation/summary.json").write_text(json.dumps(summary))
    return fold.parent


def logits(model, image):
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    return predictor.predict_sliding_window_return_logits(image), predictor


@pytest.mark.parametrize("kind", TRAININGS)
def test_plain_nnunet_predicts_the_same(tiny, kind, monkeypatch, tmp_path):
    model = trained(tiny, *TRAININGS[kind])
    image = torch.randn(1, 20, 18, 16)  # larger than the patch: several windows
    monkeypatch.setenv("nnUNet_extTrainer", str(nnunet_setup.TRAINERS))
    expected, original = logits(model, image)
    archive = export_model(model, tmp_path / "out", facts={"Arm": kind})

    monkeypatch.delenv("nnUNet_extTrainer")
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "installed"))
    install_model_from_zip_file(str(archive))
    installed = tmp_path / f"installed/{tiny.dataset}/nnUNetTrainer__{tiny.plans_name}__3d_fullres"
    found, plain = logits(installed, image)
    assert torch.equal(found, expected)
    assert plain.allowed_mirroring_axes == original.allowed_mirroring_axes
    assert (plain.allowed_mirroring_axes is None) == (kind == "without mirroring")
    assert plain.configuration_manager.patch_size == [16, 8, 8]
    checkpoint = torch.load(installed / "fold_0/checkpoint_final.pth", weights_only=False)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    card = (installed / "card.md").read_text()
    for line in (f"| Arm | {kind} |", "| Dice, fold 0 | 0.5432 |", "-tr nnUNetTrainer -p tinyPl"):
        assert line in card
    assert {path.name for path in installed.iterdir()} == {
        *("plans.json", "dataset.json", "dataset_fingerprint.json", "card.md", "fold_0")
    }


def test_what_cannot_be_exported_is_named(tiny, tmp_path):
    model = trained(tiny, PROGRESSIVE)
    out = tmp_path / "out"
    with zipfile.ZipFile(export_model(model, out)) as archive:
        assert len(archive.namelist()) == len(set(archive.namelist()))
    with pytest.raises(ValueError, match=r"nnUNetTrainer__tinyPlans__3d_fullres exists: remove"):
        export_model(model, out)
    with pytest.raises(ValueError, match="not nnU-Net's folder"):
        export_model(model.parent, tmp_path / "other")
    with pytest.raises(ValueError, match="not nnU-Net's folder"):
        export_model(model, tmp_path / "other", ["0", "1"])
    (model / "fold_0/validation/summary.json").unlink()
    with pytest.raises(ValueError, match=r"lacks fold_0/validation/summary\.json: finish"):
        export_model(model, tmp_path / "other")


def test_a_hypernetwork_is_baked_instead(tiny, tmp_path):
    model = trained(tiny, "nnUNetTrainerScaleSpace", {"rank": 2})
    with pytest.raises(ValueError, match="is baked for one scale factor instead"):
        export_model(model, tmp_path / "out")


def test_its_weights_are_a_start_for_nnunet_s_own_training(tiny, tmp_path):
    """And those of any training with the same plans are one for an arm's."""
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    checkpoint = trained(tiny, PROGRESSIVE) / "fold_0/checkpoint_final.pth"
    weights = torch.load(checkpoint, weights_only=False)["network_weights"]
    for name in ("nnUNetTrainer", "nnUNetTrainerRandomPatch"):
        trainer = tiny.trainer(name, seed=2)
        load_pretrained_weights(trainer.network, str(checkpoint))
        found = trainer.network.state_dict()
        assert all(torch.equal(found[key], weights[key]) for key in weights if "seg_" not in key)
