"""Scale-space training under the pinned nnU-Net, and its models under nnU-Net's own command."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.processes import PATIENCE
from workflow_scripts.common.errors import UserError
from workflow_scripts.records.energy_reading import Reading
from workflow_scripts.records.flop_counter import FlopTable
from workflow_scripts.records.ledger import EpochWork, Ledger
from workflow_scripts.records.recorder import Recorder
from workflow_scripts.scale_space.baking import bake_model
from workflow_scripts.scale_space.evaluate_transfer import evaluate_transfer
from workflow_scripts.scale_space.inference import (
    InferenceSettings,
    ValidationCases,
    evaluate_scale,
)
from workflow_scripts.trainers.curricula.networks.hypernetwork import ScaleSpaceNetwork
from workflow_scripts.trainers.curricula.networks.rescaled_unet import RescaledUNet
from workflow_scripts.trainers.curricula.resumable import TrainingStopped
from workflow_scripts.trainers.curricula.schedules.scale_factors import ScaleSpaceSettings

ROOT = Path(__file__).parents[2]
PYTHON = Path(sys.executable)
SCALE_SPACE = "nnUNetTrainerScaleSpace"
ROLES = {
    "hypernetwork": {"rank": 3},
    "stochastic": {"rank": 0},
    "film": {"rank": 0, "film": True},
    "fixed": {"rank": 0, "scale_factor": 0.35},
    "fixed_hyper": {"rank": 3, "scale_factor": 0.35},
}


class Meter:
    """A meter without readings."""

    def read(self):
        return Reading()


def watch_scales(trainer):
    """Record the network's scale factor in each step of training and validation."""
    seen = {"train_step": [], "validation_step": []}
    network = trainer.scale_space

    def watched(name):
        step = getattr(trainer, name)

        def note(batch):
            result = step(batch)
            seen[name].append(network.scale_factor)
            return result

        return note

    for name in seen:
        setattr(trainer, name, watched(name))
    return seen["train_step"], seen["validation_step"]


def weights(trainer):
    return {name: value.clone() for name, value in trainer.network.state_dict().items()}


SIX = {"n_stages": 3, "features_per_stage": [4, 8, 8], "strides": [[1] * 3, [2] * 3, [2] * 3]}


def small_network(seed, **options):
    torch.manual_seed(seed)
    primary = RescaledUNet(
        1,
        3,
        **SIX,
        conv_op=torch.nn.Conv3d,
        kernel_sizes=[[3] * 3] * 3,
        n_conv_per_stage=[1] * 3,
        n_conv_per_stage_decoder=[1] * 2,
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
    )
    return ScaleSpaceNetwork(primary, ScaleSpaceSettings(**options))


def kernel_share(network):
    """Return the share of the initial update kernel that depends on the scale factor."""
    with torch.no_grad():
        u = torch.cat([network.coordinates(float(phi)) for phi in torch.linspace(0.25, 0.5, 26)])
        kernel = 1 + u @ u.T
        return float(1 - kernel.mean() / kernel.diagonal().mean())


def test_the_share_of_the_kernel_that_depends_on_the_scale_varies_with_the_seed():
    """Reproduce the numbers of docs/explanation/scale_space.md."""
    shares = sorted(kernel_share(small_network(seed)) for seed in range(21))
    assert [round(shares[n], 3) for n in (0, 10, 20)] == [0.019, 0.084, 0.278]


def test_film_scales_and_shifts_the_features_of_every_channel():
    network = small_network(1, rank=0, film=True).eval()
    plain = small_network(1, rank=0).eval()
    x = torch.randn(1, 1, 16, 16, 16)
    network.scale_factor = plain.scale_factor = 0.35
    with torch.no_grad():
        assert torch.allclose(network(x), plain(x), atol=1e-6), "at first it changes nothing"
        torch.nn.init.normal_(network.film[-1].weight, std=0.1)
        weights_at = {scale: network.weights(scale) for scale in (0.25, 0.5)}
        changed = {
            name
            for name, value in weights_at[0.25].items()
            if not torch.equal(value, weights_at[0.5][name])
        }
        norms = {name for name in weights_at[0.25] if ".norm." in name}
        assert changed == norms, "convolutions are shared"
        found = []
        layer = network.primary.encoder.stages[0][0].convs[0].norm
        name = next(n for n, m in network.primary.named_modules() if m is layer)
        layer.register_forward_hook(lambda module, given, made: found.append((given[0], made)))
        network(x)
        given, made = found[0]
        normal = torch.nn.functional.instance_norm(given, eps=1e-5)
        own = network.weights(0.35)
        expected = normal * own[f"{name}.weight"].view(1, -1, 1, 1, 1)
        expected = expected + own[f"{name}.bias"].view(1, -1, 1, 1, 1)
        assert torch.allclose(made, expected, atol=1e-5)


def test_a_baked_film_network_computes_the_same(tiny):
    network = small_network(2, rank=0, film=True).eval()
    torch.nn.init.normal_(network.film[-1].weight, std=0.1)
    network.scale_factor = 0.3
    baked = small_network(7, rank=0).primary.eval()
    baked.load_state_dict(network.baked_state(0.3))
    baked.scale_factor = 0.3
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.allclose(network(x), baked(x), atol=1e-6)


def losses(trainer):
    return [float(value) for value in trainer.logger.get_value("train_losses", step=None)]


@pytest.mark.parametrize("role", ROLES)
def test_every_role_trains_at_its_scales(tiny, role):
    options = ROLES[role]
    trainer = tiny.trainer(
        SCALE_SPACE, epochs=2, iterations=4, validation_iterations=4, seed=5, **options
    )
    trainer.batch_seed = 5
    before = weights(trainer)
    trained, validated = watch_scales(trainer)
    trainer.run_training()
    if "scale_factor" in options:
        assert set(trained) == set(validated) == {0.35}
    else:
        assert trained == [trainer.scales.of_iteration(5, i) for i in range(8)]
        assert len(set(trained)) > 3
        assert validated == [0.5, 0.38, 0.25, 0.5] * 2
    assert np.isfinite(losses(trainer)).all()
    after = weights(trainer)
    assert ("modulation" in after) == (options["rank"] > 0)
    assert all(
        not torch.equal(before[name], after[name]) for name in after if "conv.weight" in name
    )
    if options["rank"]:
        assert not torch.equal(before["modulation"], after["modulation"])
        assert trainer.scale_space.coordinates(0.3).norm().item() == pytest.approx(1, abs=1e-4)
    written = json.loads((Path(trainer.output_folder_base) / "plans.json").read_text())
    assert written == tiny.plans, "the plan is left alone"


@pytest.mark.parametrize(
    ("stops", "optimizer"),
    [([(1, 1)], "sgd"), ([(0, 0), (1, 2)], "sgd"), ([(0, 1), (2, 0)], "adamw")],
)
def test_a_stopped_training_goes_on_with_the_same_scales(tiny, stops, optimizer):
    options = {"epochs": 3, "iterations": 3, "rank": 2, "batch_seed": 4}
    options["optimizer_name"] = optimizer
    whole = tiny.trainer(SCALE_SPACE, **options)
    expected, _ = watch_scales(whole)
    whole.run_training()

    path, done = None, []
    for stop_at in [*stops, None]:
        trainer = tiny.trainer(SCALE_SPACE, seed=77 if path else 1, **options)
        if path:
            trainer.load_checkpoint(str(path))
        step = trainer.train_step

        def watch(batch, trainer=trainer, step=step, at=stop_at):
            trainer.stop_requested = (trainer.current_epoch, trainer.iterations_done) == at
            scale = trainer.scale_of_step("train")
            try:
                return step(batch)
            finally:
                done.append(scale)
                assert trainer.scale_space.scale_factor == scale

        trainer.train_step = watch
        if stop_at is None:
            trainer.run_training()
        else:
            with pytest.raises(TrainingStopped):
                trainer.run_training()
            path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    assert done == expected
    assert losses(trainer) == losses(whole)
    one, other = weights(trainer), weights(whole)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


SGD = ({}, torch.optim.SGD, 0.01)
CHOSEN = {
    "adamw": ({"optimizer_name": "adamw"}, torch.optim.AdamW, 0.001),
    "adamw-rate": ({"optimizer_name": "adamw", "initial_lr": 0.0003}, torch.optim.AdamW, 0.0003),
    "sgd-rate": ({"optimizer_name": "sgd", "initial_lr": 0.02}, torch.optim.SGD, 0.02),
}


@pytest.mark.parametrize(
    ("role", "chosen", "kind", "rate"),
    [
        *(pytest.param(role, *SGD, id=f"{role}-default") for role in ROLES),
        *(pytest.param("hypernetwork", *how, id=name) for name, how in CHOSEN.items()),
    ],
)
def test_the_optimiser_is_the_wanted_one_of_nnunet(tiny, role, chosen, kind, rate):
    trainer = tiny.trainer(SCALE_SPACE, epochs=10, **ROLES[role], **chosen)
    stock = {torch.optim.SGD: "nnUNetTrainer", torch.optim.AdamW: "nnUNetTrainerAdam1en3"}[kind]
    expected = tiny.trainer(stock).optimizer.param_groups[0]
    assert type(trainer.optimizer) is kind
    (group,) = trainer.optimizer.param_groups
    same = {key for key in expected if key not in ("params", "lr", "initial_lr")}
    assert {key: group[key] for key in same} == {key: expected[key] for key in same}
    assert {id(p) for p in group["params"]} == {id(p) for p in trainer.network.parameters()}
    assert group["lr"] == rate
    if "initial_lr" not in chosen:
        assert group["lr"] == expected["lr"], "nnU-Net's own"
    trainer.lr_scheduler.step(4)
    assert group["lr"] == pytest.approx(rate * 0.6**0.9)


def test_pseudo_dice_is_noted_by_scale(tiny, tmp_path):
    """It is nnU-Net's, per scale factor; over all batches, it equals nnU-Net's own value."""
    from workflow_scripts.trainers.curricula.scale_space import pseudo_dice

    trainer = tiny.trainer(SCALE_SPACE, epochs=1, iterations=6, validation_iterations=5, rank=2)
    seen, step = [], trainer.validation_step
    trainer.validation_step = lambda batch: seen.append(step(batch)) or seen[-1]
    ledger = Ledger(tmp_path / "ledger")
    table = FlopTable(trainer.network, 1)
    Recorder(ledger, Meter(), table, 1, 0.0).attach(trainer)
    trainer.run_training()
    (entry,) = [e for e in ledger.read() if isinstance(e, EpochWork)]
    assert entry.result.pseudo_dice == pytest.approx(pseudo_dice(seen))
    by_scale = {"0.25": [2], "0.38": [1, 4], "0.5": [0, 3]}
    assert entry.result.pseudo_dice_by_scale == pytest.approx(
        {scale: pseudo_dice([seen[i] for i in steps]) for scale, steps in by_scale.items()},
        nan_ok=True,
    )
    assert len(set(entry.result.pseudo_dice_by_scale.values())) > 1


def test_batches_are_those_of_the_constant_arm_with_whole_targets(tiny):
    loaded = []
    for name in ("nnUNetTrainerConstantPatch", SCALE_SPACE):
        loaders = tiny.trainer(name, batch_seed=9).get_dataloaders()
        loaded.append([list(islice(loader, 2)) for loader in loaders])
    for stock, ours in zip(*loaded, strict=True):
        for one, other in zip(stock, ours, strict=True):
            assert torch.equal(one["data"], other["data"])
            assert torch.equal(one["target"][0], other["target"])


def test_targets_at_one_half_are_stock(tiny):
    """At the planned sizes, targets and weights of the loss are those of nnU-Net."""
    stock = tiny.trainer("nnUNetTrainerConstantPatch", batch_seed=9)
    ours = tiny.trainer(SCALE_SPACE, batch_seed=9, scale_factor=0.5, rank=0)
    batches = [next(iter(trainer.get_dataloaders()[0])) for trainer in (stock, ours)]
    at_scale = ours._at_scale(batches[1], "val")
    for one, other in zip(batches[0]["target"], at_scale["target"], strict=True):
        assert torch.equal(one, other)
    assert ours.loss.weight_factors == pytest.approx(stock.loss.weight_factors)


def test_every_step_s_work_is_counted_at_its_scale(tiny, tmp_path):
    trainer = tiny.trainer(SCALE_SPACE, epochs=1, iterations=5, validation_iterations=3, rank=2)
    table = FlopTable(trainer.network, 1)
    recorder = Recorder(Ledger(tmp_path / "ledger"), Meter(), table, 1, 0.0)
    trained, validated = watch_scales(trainer)
    recorder.attach(trainer)
    trainer.run_training()
    (entry,) = [e for e in Ledger(tmp_path / "ledger").read() if isinstance(e, EpochWork)]
    expected = sum(
        n * table.training_step(4, (16, 8, 8), scale) for scale, n in Counter(trained).items()
    )
    assert entry.steps.train_gflop == pytest.approx(expected / 1e9)
    both = expected + sum(table.validation_step(4, (16, 8, 8), scale) for scale in validated)
    assert entry.steps.gflop == pytest.approx(both / 1e9)
    assert (entry.steps.patch_size, entry.steps.iterations, entry.steps.stage) == ("16x8x8", 5, 0)
    costs = [table.training_step(4, (16, 8, 8), scale) for scale in (0.25, 0.35, 0.5)]
    assert costs == sorted(costs)


def test_scales_that_cannot_be_stop_the_training_before_it_begins(tiny):
    trainer = tiny.trainer(SCALE_SPACE)
    trainer.smallest_scale = 0.6
    with pytest.raises(ValueError, match=r"smallest_scale 0\.6 must be at least 0\.01 below"):
        trainer.schedule()
    trainer.smallest_scale, trainer.rank = 0.25, 1
    with pytest.raises(ValueError, match="rank 1 with unit_norm"):
        trainer.schedule()


# --- baked models


@pytest.fixture
def trained(tiny):
    """A short training of a hypernetwork, with a final validation."""
    trainer = tiny.trainer(SCALE_SPACE, epochs=2, iterations=6, rank=2)
    trainer.run_training()
    return trainer


def validate(trainer, cases, mirroring):
    """Run nnU-Net's final validation; return its summary."""
    trainer.do_split = lambda: ([], cases)
    axes = trainer.inference_allowed_mirroring_axes
    trainer.inference_allowed_mirroring_axes = axes if mirroring else None
    trainer.perform_actual_validation()
    return json.loads((Path(trainer.output_folder) / "validation" / "summary.json").read_text())


def test_final_validation_has_the_weights_of_the_final_scale(trained):
    seen = []
    primary = trained.scale_space.primary
    primary.register_forward_hook(
        lambda module, x, y: seen.append((module.scale_factor, trained.scale_space._frozen is None))
    )
    summary = validate(trained, ["tiny_000"], mirroring=False)
    assert set(seen) == {(0.5, False)}
    assert trained.scale_space._frozen is None
    assert len(summary["metric_per_case"]) == 1


@pytest.mark.slow
def test_stock_nnunet_predicts_with_a_baked_model(trained, tiny):
    """Use its own command in a process that does not know this workflow's folders."""
    scale, out, model = 0.3, tiny.results.parent / "predicted", tiny.results.parent / "baked"
    images = tiny.results.parent / "images"
    images.mkdir()
    shutil.copy(tiny.raw / tiny.dataset / "imagesTr/tiny_000_0000.nii.gz", images)
    fold = Path(trained.output_folder)
    bake_model({0: fold}, {"rank": 2}, scale, model)
    assert {path.name for path in model.iterdir()} == {
        *("plans.json", "dataset.json", "baked.json", "trainers", "fold_0"),
    }
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        **tiny.environment,
        "nnUNet_extTrainer": str(model / "trainers"),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        *(PYTHON.with_name("nnUNetv2_predict_from_modelfolder"), "-m", model, "-f", "0"),
        *("-i", images, "-o", out, "-device", "cpu"),
        *("--save_probabilities", "-npp", "1", "-nps", "1"),
    ]
    done = subprocess.run(
        list(map(str, command)),
        env=environment,
        cwd=tiny.results.parent,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]

    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(
        trained.network,
        trained.plans_manager,
        trained.configuration_manager,
        None,
        trained.dataset_json,
        SCALE_SPACE,
        trained.inference_allowed_mirroring_axes,
    )
    trained.set_deep_supervision_enabled(False)
    dataset = trained.dataset_class(trained.preprocessed_dataset_folder, ["tiny_000"])
    data = torch.from_numpy(dataset.load_case("tiny_000")[0][:])
    trained.scale_space.scale_factor = scale
    logits = predictor.predict_sliding_window_return_logits(data)
    expected = torch.softmax(logits.float(), 0).numpy()
    found = np.load(out / "tiny_000.npz")["probabilities"]
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5
    trained.scale_space.scale_factor = 0.5
    other = torch.softmax(predictor.predict_sliding_window_return_logits(data).float(), 0).numpy()
    assert np.abs(found - other).max() > 1e-3, "another scale factor gives other predictions"


@pytest.mark.parametrize("role", ROLES)
def test_a_baked_folder_s_logits_are_the_hypernetwork_s(tiny, monkeypatch, role):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    options = ROLES[role]
    trainer = tiny.trainer(SCALE_SPACE, epochs=1, iterations=3, **options)
    trainer.run_training()
    scale, model = options.get("scale_factor", 0.4), tiny.results.parent / "baked"
    bake_model({0: Path(trainer.output_folder)}, options, scale, model)
    monkeypatch.setenv("nnUNet_extTrainer", str(model / "trainers"))
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    assert type(predictor.network).__name__ == "RescaledUNet"
    assert predictor.network.scale_factor == scale
    trainer.set_deep_supervision_enabled(False)
    trainer.scale_space.scale_factor = scale
    x = torch.randn(1, 1, 16, 8, 8)
    with torch.no_grad():
        assert torch.allclose(predictor.network(x), trainer.network(x), atol=1e-5)


def test_weights_are_baked_into_the_network_of_another_scale(trained, tiny):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from torch.func import functional_call

    model = tiny.results.parent / "baked"
    bake_model({0: Path(trained.output_folder)}, {"rank": 2}, 0.5, model, weights_scale=0.25)
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_extTrainer", str(model / "trainers"))
        predictor.initialize_from_trained_model_folder(str(model), (0,))
    assert predictor.network.scale_factor == 0.5
    trained.set_deep_supervision_enabled(False)
    network, x = trained.scale_space, torch.randn(1, 1, 16, 8, 8)
    network.scale_factor = 0.5
    with torch.no_grad():
        found = predictor.network(x)
        weights = network.weights(0.25)
        expected = functional_call(network.primary, weights, (x,), tie_weights=False)
        assert torch.allclose(found, expected, atol=1e-5)
        assert not torch.allclose(found, network(x), atol=1e-3), "its own weights"


@pytest.fixture
def evaluation(tiny, monkeypatch):
    """Validation cases and settings shared by all evaluations of the task."""
    monkeypatch.setattr("workflow_scripts.common.nnunet_setup.RAW", tiny.raw)
    monkeypatch.setattr("workflow_scripts.common.nnunet_setup.PREPROCESSED", tiny.preprocessed)
    for name in ("nnUNet_def_n_proc", "nnUNet_extTrainer"):
        monkeypatch.setenv(name, "1")  # so that changes are undone at the end
    cases = json.loads((tiny.folder / "splits_final.json").read_text())[0]["val"]
    training = {"device": "cpu", "precision": "fp32", "deterministic": False}
    energy = {"country": "DEU", "tracking_mode": "process"}
    return (
        ValidationCases(0, cases, tiny.folder),
        InferenceSettings.of(training, energy, mirroring=True, threads=1),
    )


def test_an_evaluation_is_nnunet_s_own_validation(trained, tiny, evaluation):
    """Same Dice as the mirrored final validation at that scale factor, and the cost."""
    validated = replace(evaluation[0], cases=evaluation[0].cases[:1])
    own = validate(trained, validated.cases, mirroring=True)
    model, fold = tiny.results.parent / "baked", Path(trained.output_folder)
    bake_model({0: fold}, {"rank": 2}, 0.5, model)
    summary = tiny.results.parent / "evaluated.json"
    found = evaluate_scale(model, validated, evaluation[1], summary)
    assert found["dice"] == pytest.approx(own["foreground_mean"]["Dice"], abs=1e-6)
    assert found["cases"] == 1 == len(json.loads(summary.read_text())["metric_per_case"])
    network = trained.scale_space.primary
    trained.set_deep_supervision_enabled(False)
    gmac = FlopTable(network, 1).validation_step(1, (16, 8, 8), 0.5) / 2e9
    assert found["gmac_per_patch"] == pytest.approx(gmac)
    # 24x32x24 voxels in windows of 16x8x8 at half steps, eight times with mirroring.
    assert found["passes_per_case"] == 2 * 7 * 5 * 8
    assert found["gmac_per_case"] == pytest.approx(gmac * found["passes_per_case"])
    assert found["seconds_per_case"] > 0


def test_nnunet_s_own_network_is_evaluated_by_the_same_lines(tiny, evaluation):
    """Its Dice is over all cases, here without mirroring."""
    validated, settings = evaluation
    trainer = tiny.trainer("nnUNetTrainerConstantPatch", epochs=1, iterations=4)
    trainer.run_training()
    own = validate(trainer, validated.cases, mirroring=False)
    summary, model = tiny.results.parent / "evaluated.json", Path(trainer.output_folder).parent
    found = evaluate_scale(model, validated, replace(settings, mirroring=False), summary)
    assert found["dice"] == pytest.approx(own["foreground_mean"]["Dice"], abs=1e-6)
    assert found["cases"] == 2 == len(json.loads(summary.read_text())["metric_per_case"])
    assert found["passes_per_case"] == 2 * 7 * 5
    trainer.set_deep_supervision_enabled(False)
    gmac = FlopTable(trainer.network, 1).validation_step(1, (16, 8, 8)) / 2e9
    assert found["gmac_per_patch"] == pytest.approx(gmac)


def test_a_transfer_is_an_evaluation_with_other_weights(trained, tiny, evaluation):
    fold = Path(trained.output_folder)
    validated = replace(evaluation[0], cases=evaluation[0].cases[:1])
    settings = replace(evaluation[1], mirroring=False)
    dice = []
    for weights in (0.25, 0.5):
        model = tiny.results.parent / f"baked_{weights}"
        bake_model({0: fold}, {"rank": 2}, 0.25, model, weights)
        summary = tiny.results.parent / "evaluated.json"
        expected = evaluate_scale(model, validated, settings, summary)
        found = evaluate_transfer(fold, {"rank": 2}, (weights, 0.25), validated, settings)
        assert found == {
            **{"weights_scale": weights, "network_scale": 0.25, "cases": 1},
            "dice": pytest.approx(expected["dice"], abs=1e-6),
        }
        dice.append(found["dice"])
    assert dice[0] != dice[1]


def test_the_file_that_goes_with_a_model_stands_alone():
    text = (ROOT / "workflow_scripts/trainers/curricula/networks/rescaled_unet.py").read_text()
    assert "from ." not in text
    assert "trainers." not in text


def test_a_training_that_is_not_there_is_named(tiny):
    with pytest.raises(UserError, match=r"checkpoint_final\.pth is missing: train this fold"):
        bake_model({0: tiny.results / "nothing"}, {}, 0.3, tiny.results / "model")
    with pytest.raises(UserError, match="must be above 0 and at most 1"):
        bake_model({}, {}, 1.3, tiny.results / "model")
