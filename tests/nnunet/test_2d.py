"""Every arm on 2D plans: of RGB images (PNG), and of the slices of volumes."""

import json
import shutil
from collections import Counter
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, ks_2samp
from skimage import io

from helpers.processes import forked_pools
from helpers.tiny_task import TinyTask, prepare
from workflow_scripts.common.files import write_json
from workflow_scripts.common.nnunet_setup import TRAINERS
from workflow_scripts.evaluation.measure_class_balance import measure_task
from workflow_scripts.figures.plot_patches import central_patch, plan_arms, seen
from workflow_scripts.forecast.plans import read_plan
from workflow_scripts.forecast.workload import StudyDesign, count_work
from workflow_scripts.planning.plan_overrides import override_plans
from workflow_scripts.scale_space.baking import bake_model
from workflow_scripts.study.settings import TrainingSettings
from workflow_scripts.trainers.curricula.batches.batched_augmentation import (
    BatchedAugmentation,
    Draws,
)
from workflow_scripts.trainers.curricula.patch_curriculum import initial_patch_size

CONSTANT = "nnUNetTrainerConstantPatch"
PROGRESSIVE = "nnUNetTrainerProgressivePatch"
RANDOM = "nnUNetTrainerRandomPatch"
PLUS = "nnUNetTrainerProgressivePlusPatch"
EFFICIENCY = "nnUNetTrainerProgressiveEfficiencyPatch"
PERFORMANCE = "nnUNetTrainerProgressivePerformancePatch"
LOW, LOW_ITERATIONS = "nnUNetTrainerLowFrequency", "nnUNetTrainerLowFrequencyIterations"
SCALE_SPACE = "nnUNetTrainerScaleSpace"
# Of two epochs: the shapes of a training batch in the first. `constant_short` has the same trainer
# as `constant`.
ARMS = {
    CONSTANT: (6, 24, 16),
    PROGRESSIVE: (6, 8, 4),
    PLUS: (8, 8, 4),
    EFFICIENCY: (6, 4, 4),
    PERFORMANCE: (144, 4, 4),
    LOW: (6, 12, 8),
    LOW_ITERATIONS: (6, 12, 8),
    SCALE_SPACE: (6, 24, 16),
    RANDOM: None,
}
SHAPE, PATCH, BATCH = (40, 48), (24, 16), 6
UNLIKELY = 1e-4
SAMPLES = 1500
DATA = "nnUNetPlans_3d_fullres"


class PhotoTask(TinyTask):
    """RGB images whose values are those of the labels, plus noise."""

    dataset, configuration, plans_name = "Dataset997_Photos", "2d", "flatPlans"


class SliceTask(TinyTask):
    """The slices of the tiny volumes."""

    configuration, plans_name = "2d", "flatPlans"


def write_photos(folder):
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    random = np.random.default_rng(2024)
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    cases = [f"photo_{number}" for number in range(7)]
    for case in cases:
        distance = np.linalg.norm(grid - np.array(SHAPE) / 2 - random.uniform(-5, 5, 2), axis=-1)
        label = (distance < 10).astype(np.uint8) + (distance < 6)
        colours = 60 * label[..., None] + [10, 50, 90] + random.integers(0, 30, (*SHAPE, 3))
        io.imsave(folder / f"imagesTr/{case}_0000.png", colours.astype(np.uint8))
        io.imsave(folder / f"labelsTr/{case}.png", label, check_contrast=False)
    description = {
        "channel_names": {"0": "red", "1": "green", "2": "blue"},
        "labels": {"background": 0, "outer": 1, "inner": 2},
        "numTraining": 7,
        "file_ending": ".png",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return cases


OVERRIDES = {"patch_size": list(PATCH), "batch_size": BATCH, "features_per_stage": [4, 8, 8]}


@pytest.fixture(scope="module")
def of_photos(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("photos"), PhotoTask, write_photos, OVERRIDES)


def ready(task, monkeypatch):
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    for name, value in task.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(LocalLogger, "plot_progress_png", lambda *_: None)
    torch.set_num_threads(1)
    return task


@pytest.fixture
def photos(of_photos, tmp_path, monkeypatch):
    with forked_pools():
        yield ready(PhotoTask(*of_photos, tmp_path / "results"), monkeypatch)


@pytest.fixture
def slices(prepared, tmp_path, monkeypatch):
    """The tiny task with a 2D plan; its voxels are cubes, so 3D and 2D preprocessing agree."""
    task = SliceTask(*prepared, tmp_path / "results")
    planned = json.loads((task.folder / "nnUNetPlans.json").read_text())
    plans = override_plans(planned, task.plans_name, "2d", OVERRIDES)
    plans["configurations"]["2d"]["data_identifier"] = DATA
    write_json(plans, task.folder / f"{task.plans_name}.json")
    with forked_pools():
        yield ready(task, monkeypatch)


def watch(trainer):
    """Record the shapes of the data of the training steps."""
    shapes, step = [], trainer.train_step

    def note(batch):
        shapes.append(tuple(batch["data"].shape))
        return step(batch)

    trainer.train_step = note
    return shapes


def losses(trainer):
    return [float(value) for value in trainer.logger.get_value("train_losses", step=None)]


# --- training


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_trains(photos, name):
    trainer = photos.trainer(name, epochs=2, iterations=2)
    shapes, validated = watch(trainer), []
    step = trainer.validation_step

    def note(batch):
        validated.append(tuple(batch["data"].shape))
        return step(batch)

    trainer.validation_step = note
    trainer.run_training()
    assert set(validated) == {(BATCH, 3, *PATCH)}
    assert np.isfinite(losses(trainer)).all()
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").is_file()
    if name != RANDOM:
        batch, *patch = ARMS[name]
        assert shapes[0] == (batch, 3, *patch)
        assert shapes[-1] == (BATCH, 3, *PATCH)
    else:
        sizes = {stage.patch_size for stage in trainer.stages}
        assert {shape[2:] for shape in shapes} <= sizes


@pytest.mark.parametrize("name", [PERFORMANCE, LOW])
def test_a_killed_training_resumes_with_the_same_batches(photos, name):
    options = {"epochs": 3, "iterations": 2, "checkpoint_seconds": 0.0}
    whole = photos.trainer(name, **options)
    whole.run_training()

    class KilledError(BaseException):
        pass

    killed = photos.trainer(name, **options)
    step = killed.train_step

    def fail(batch):
        if killed.current_epoch == 1:
            raise KilledError
        return step(batch)

    killed.train_step = fail
    with pytest.raises(KilledError):
        killed.run_training()
    resumed = photos.trainer(name, seed=555, **options)
    resumed.load_checkpoint(str(Path(resumed.output_folder) / "checkpoint_latest.pth"))
    assert resumed.current_epoch == 1
    resumed.run_training()
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-6)


def predict(model, images, out):
    """Predict one image with stock nnU-Net from a model's folder; return the prediction."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    out.mkdir()
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    predictor.predict_from_files_sequential(str(images), str(out))
    (found,) = out.glob("*.png")
    return io.imread(found)


def test_stock_nnunet_predicts_with_the_models(photos, tmp_path, monkeypatch):
    """An arm's own model, and one baked for a scale factor."""
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(photos.raw / photos.dataset / "imagesTr/photo_0_0000.png", images)
    progressive = photos.trainer(PROGRESSIVE, epochs=1, iterations=1)
    progressive.run_training()
    monkeypatch.setenv("nnUNet_extTrainer", str(TRAINERS))
    assert predict(progressive.output_folder_base, images, tmp_path / "own").shape == SHAPE
    trainer = photos.trainer(SCALE_SPACE, epochs=1, iterations=2, rank=2)
    trainer.run_training()
    bake_model({0: Path(trainer.output_folder)}, {"rank": 2}, 0.3, tmp_path / "baked")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "baked" / "trainers"))
    assert predict(tmp_path / "baked", images, tmp_path / "out").shape == SHAPE


def test_the_final_validation_predicts_every_slice(slices):
    trainer = slices.trainer(EFFICIENCY, epochs=1, iterations=1)
    trainer.run_training()
    trainer.do_split = lambda: ([], ["tiny_000"])
    trainer.perform_actual_validation()
    summary = json.loads((Path(trainer.output_folder) / "validation/summary.json").read_text())
    voxels = summary["metric_per_case"][0]["metrics"]["1"]
    assert sum(voxels[name] for name in ("TP", "FP", "FN", "TN")) == 24 * 32 * 24


# --- loading


def test_seeded_batches_are_those_of_nnunet_s_loader(slices):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    trainer = slices.trainer(CONSTANT, batch_seed=99)
    ours, stock = trainer.get_dataloaders(), nnUNetTrainer.get_dataloaders(trainer)
    for number, (our_loader, stock_loader) in enumerate(zip(ours, stock, strict=True)):
        for k in range(2):
            batch = next(our_loader)
            word = int(np.random.SeedSequence((99, number, 0, k)).generate_state(1)[0])
            np.random.seed(word)
            torch.manual_seed(word)
            expected = next(stock_loader)
            assert list(batch["keys"]) == list(expected["keys"])
            assert torch.equal(batch["data"], expected["data"])
            assert all(map(torch.equal, batch["target"], expected["target"]))


def plain_loader(trainer):
    """Return the training loader, whose batches are cropped but not augmented."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from workflow_scripts.trainers.curricula.batches.augmentation_strength import weaken

    trainer.get_training_transforms = lambda *args, **options: weaken(
        nnUNetTrainer.get_training_transforms(*args, **options), 0
    )
    return trainer.get_dataloaders()[0].data_loader


def test_a_batch_of_slices_opens_each_volume_once_and_forces_foreground(slices):
    trainer = slices.trainer(EFFICIENCY, epochs=30, iterations=1, mirror_axes="none")
    loader = plain_loader(trainer)
    opened = []
    dataset = loader._data._dataset
    load = dataset.load_case

    def note(key):
        opened.append(key)
        return load(key)

    dataset.load_case = note
    forced = Counter()
    for _ in range(20):
        opened.clear()
        batch = next(loader)
        plan = loader._plan
        if plan.batched is None:
            break
        # A key that was drawn twice may be that of the former batch's last volume.
        assert max(Counter(opened).values()) == 1
        assert len(opened) <= len(set(batch["keys"])) <= BATCH
        for sample, key in enumerate(batch["keys"]):
            whole = load(key)[0][:][0]
            crop = batch["data"][sample, 0].numpy()
            assert crop.shape == plan.stage.patch_size
            inside = crop[crop != 0]
            depths = [set(np.flatnonzero((whole == value).any((1, 2)))) for value in inside[:3]]
            assert set.intersection(*depths), "all of it is from one slice"
            if plan.forced[sample]:
                forced[bool((batch["target"][0][sample] > 0).any())] += 1
    assert forced[True] > 20
    assert not forced[False]


def test_few_volumes_have_many_crops(slices):
    trainer = slices.trainer(PERFORMANCE, epochs=30, iterations=1)
    plans, _ = trainer._loading_plans()
    for plan in plans:
        volumes = Counter(plan.volumes)
        assert len(volumes) <= BATCH
        assert set(list(volumes.values())[:-1]) <= {-(-plan.stage.batch_size // BATCH)}
        assert plan.forced == tuple(volume % 2 == 1 for volume in plan.volumes)


# --- augmentation as a batch


def pipeline(patch, rotation, **options):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    options = {"deep_supervision_scales": None, "use_mask_for_norm": [False] * 2} | options
    transforms = nnUNetTrainer.get_training_transforms(
        patch, rotation, mirror_axes=(0, 1), do_dummy_2d_data_aug=False, **options
    )
    return transforms, tuple(map(int, initial_patch_size(patch, rotation, False)))


@pytest.mark.parametrize(
    ("patch", "degrees"), [((24, 16), 180), ((24, 12), 15)], ids=["square", "long"]
)
def test_the_rotation_range_is_that_of_the_planned_patch(photos, patch, degrees):
    """nnU-Net turns square patches by any angle, and long ones by at most 15 degrees."""
    plans = photos.plans
    plans["configurations"]["2d"]["patch_size"] = list(patch)
    trainer = photos.trainer(PROGRESSIVE, plans=plans)
    for stage in trainer._loading_plans()[0]:
        transforms = stage.transforms.transforms
        assert np.rad2deg(transforms[0].rotation) == pytest.approx((-degrees, degrees))
        assert transforms[0].patch_size == stage.stage.patch_size
        assert len(stage.initial_patch_size) == 2
        mirroring = [t for t in transforms if type(t).__name__ == "MirrorTransform"]
        assert mirroring[0].allowed_axes == (0, 1)


@pytest.mark.parametrize("degrees", [15, 180])
def test_the_whole_pipeline_is_distributed_as_nnunet_s(degrees):
    rotation = (-np.deg2rad(degrees), np.deg2rad(degrees))
    patch = (12, 16)
    transforms, initial = pipeline(patch, rotation)
    random = np.random.default_rng(1)
    shape = [-(-n // 4) for n in initial]
    drawn = np.kron(random.integers(-1, 3, (SAMPLES, 1, *shape)), np.ones((4, 4), int))
    labels = torch.from_numpy(drawn[..., : initial[0], : initial[1]].astype(np.int16))
    noise = torch.randn((SAMPLES, 2, *initial), generator=torch.Generator().manual_seed(2))
    images = labels.float() + noise / 2

    draws = Draws.of((3,))
    augmentation = BatchedAugmentation(transforms)
    placement = augmentation.place(SAMPLES, draws)
    assert binomtest(len(placement.moved), SAMPLES, 0.36).pvalue > UNLIKELY
    spans = [(n // 2 - k // 2, n // 2 - k // 2 + k) for n, k in zip(initial, patch, strict=True)]
    inside = (slice(None), slice(None), *(slice(*span) for span in spans))
    moved = placement.moved
    ours = augmentation.augment(
        images[inside].clone(), labels[inside].clone(), images[moved], labels[moved],
        placement, draws,
    )  # fmt: skip

    np.random.seed(3)
    torch.manual_seed(3)
    single = [
        transforms(image=image.clone(), segmentation=label.clone())
        for image, label in zip(images, labels, strict=True)
    ]
    theirs = [torch.stack([one[key] for one in single]) for key in ("image", "segmentation")]
    assert ours[0].shape == theirs[0].shape == (SAMPLES, 2, *patch)
    assert ours[1].shape == theirs[1].shape
    assert ours[1].dtype == theirs[1].dtype
    for one, other in ((ours[0], theirs[0]), (ours[1].float(), theirs[1].float())):
        for statistic in (
            lambda x: x.mean((1, 2, 3)),
            lambda x: x.std((1, 2, 3)),
            lambda x: x.amin((1, 2, 3)),
            lambda x: x.amax((1, 2, 3)),
            lambda x: (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3)),
            lambda x: (x[..., 1:, :] - x[..., :-1, :]).abs().mean((1, 2, 3)),
            lambda x: x[:, 0, 0, 0],
            lambda x: x[:, 0, 6, 8],
        ):
            assert ks_2samp(statistic(one), statistic(other)).pvalue > UNLIKELY


# --- what comes after


def test_work_is_counted_with_four_mirrorings_of_every_slice(slices):
    from workflow_scripts.common.nnunet_setup import find_trainer

    plan = read_plan(slices.folder / "flatPlans.json")
    settings = TrainingSettings(4, 3, 1, seed=0)
    arm = find_trainer(PROGRESSIVE)
    works = {
        mirroring: count_work(plan, arm, {}, StudyDesign("2d", settings, [0], mirroring))
        for mirroring in (True, False)
    }
    cases = len(json.loads((slices.folder / "splits_final.json").read_text())[0]["val"])
    # Images of 24 slices of 32×24 pixels: two windows of 24×16 on each axis.
    assert works[False].predictions == cases * 24 * 2 * 2
    assert works[True].predictions == 4 * works[False].predictions
    flop = [stage.tflop for stage in works[True].of_stages]
    assert all(a < b for a, b in pairwise(flop))
    stages = slices.trainer(PROGRESSIVE).stages
    assert flop[0] / flop[-1] == pytest.approx(stages[0].voxels / stages[-1].voxels)


def test_class_balance_and_patches_are_those_of_slices(slices, tmp_path):
    data = slices.folder / DATA
    table = measure_task(
        "Task998_Tiny", slices.folder / "flatPlans.json", slices.folder / "dataset.json", data,
        configuration="2d", oversample=0.33, samples=60, seed=1,
    )  # fmt: skip
    assert table["patch_size"].iloc[0] == "8x4"
    assert set(table["field_of_view"]) >= {"8x4", "24x16"}
    forced = table[table["forced"] & (table["label"] == "0")]
    grown = forced[forced["patch_size"] == forced["field_of_view"]].set_index("patch_size")
    assert grown.loc["8x4", "foreground_share"] > grown.loc["24x16", "foreground_share"]

    patch = central_patch(data, PATCH)
    assert patch.shape == PATCH
    arms = {
        "progressive": {"trainer": PROGRESSIVE, "parameters": {}},
        "low": {"trainer": LOW, "parameters": {}},
    }
    lengths = {"epochs": 10, "iterations_per_epoch": 2}
    size, planned = plan_arms(
        slices.folder / "flatPlans.json",
        "2d",
        {a: s | {"training": lengths} for a, s in arms.items()},
    )
    assert size == PATCH
    for schedule, trainer, parameters in planned.values():
        stage = schedule.stages[0]
        assert seen(patch, stage, trainer, parameters).shape == stage.patch_size
        assert prod(stage.patch_size) < prod(PATCH)
