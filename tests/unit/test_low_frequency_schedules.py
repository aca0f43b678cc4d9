"""The stages and both clocks of the low-frequency curricula, against hand-computed tables."""

from collections import Counter
from fractions import Fraction
from itertools import pairwise
from math import ceil, prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflow_scripts.trainers.curricula.schedules.frequency_stages import (
    choose_schedule,
    kept_size,
    plan_bands,
    spread,
)
from workflow_scripts.trainers.curricula.schedules.patch_plan import PatchPlan
from workflow_scripts.trainers.curricula.schedules.planner import (
    iterations_of_stages,
    plan_schedule,
)
from workflow_scripts.trainers.curricula.schedules.settings import (
    CurriculumSettings,
    TrainingLength,
)

# Planned patch and poolings -> sizes of stages 1-2 and 3-6, and their shares of its voxels.
PLANS = {
    ((128, 128, 128), (5, 5, 5)): ((64, 64, 64), (96, 96, 96), 0.125, 0.422),
    ((80, 192, 160), (4, 5, 5)): ((32, 96, 64), (64, 128, 128), 0.080, 0.427),
    ((40, 56, 40), (3, 3, 3)): ((16, 24, 16), (32, 40, 32), 0.069, 0.457),
    ((20, 320, 256), (2, 6, 6)): ((8, 128, 128), (16, 256, 192), 0.080, 0.480),
    ((40, 224, 224), (3, 5, 5)): ((16, 96, 96), (32, 160, 160), 0.073, 0.408),
    ((64, 192, 192), (4, 5, 5)): ((32, 96, 96), (48, 128, 128), 0.125, 0.333),
    ((64, 192, 160), (4, 5, 5)): ((32, 96, 64), (48, 128, 128), 0.100, 0.400),
    ((56, 192, 160), (3, 5, 5)): ((24, 96, 64), (40, 128, 128), 0.086, 0.381),
}
BRAIN, HIPPOCAMPUS = ((128, 128, 128), (5, 5, 5)), ((40, 56, 40), (3, 3, 3))


def schedule(plan, epochs, iterations, curriculum="low_frequency", batch=2, **options):
    return plan_schedule(
        PatchPlan(*plan, batch),
        TrainingLength(epochs, iterations, 7),
        CurriculumSettings(curriculum, **options),
    )


def plans():
    """Return a strategy of (patch, pooling): any multiple of the units, including a single one."""

    def of_pooling(pooling):
        axes = [st.integers(1, 7).map(lambda n, count=count: n * 2**count) for count in pooling]
        return st.tuples(st.tuples(*axes), st.just(pooling))

    return st.tuples(*[st.integers(0, 6)] * 3).flatmap(of_pooling)


CURRICULA = st.sampled_from(["low_frequency", "low_frequency_iterations"])


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: "x".join(map(str, plan[0])))
def test_golden_tables(plan):
    stages = schedule(plan, 667, 250).stages
    first, middle, of_first, of_middle = PLANS[plan]
    planned = plan[0]
    sizes = [first] * 2 + [middle] * 4 + [planned] * 4
    assert [stage.patch_size for stage in stages] == sizes
    assert {stage.loaded_size for stage in stages} == {planned}, "the field of view stays"
    assert [stage.field_of_view is None for stage in stages] == [False] * 6 + [True] * 4
    shares = [stage.voxels / stages[-1].voxels for stage in stages]
    assert shares == pytest.approx([of_first] * 2 + [of_middle] * 4 + [1] * 4, abs=5e-4)
    assert [stage.augmentation for stage in stages] == [n / 9 for n in range(10)]
    assert [stage.replay for stage in stages] == [4] * 2 + [2] * 4 + [1] * 4
    assert {stage.batch_size for stage in stages} == {2}


def test_iterations_of_an_epoch_by_hand():
    of_brain = schedule(BRAIN, 667, 250)
    each = [of_brain.iterations_of_epoch(epoch) for epoch in range(667)]
    assert sorted(set(each), reverse=True) == [2000, 593, 250]
    of_hippocampus = schedule(HIPPOCAMPUS, 28, 32)
    counts = Counter(of_hippocampus.iterations_of_epoch(epoch) for epoch in range(28))
    assert counts == {467: 6, 70: 11, 32: 11}


def test_epochs_are_spread_evenly():
    assert spread(10, 28) == (3, 3, 3, 3, 2, 3, 3, 3, 3, 2)
    assert spread(10, 10) == (1,) * 10
    assert spread(10, 667) == (67, 67, 67, 66, 67, 67, 66, 67, 67, 66)
    assert spread(10, 3) == (1, 0, 0, 0, 1, 0, 0, 0, 0, 1)
    assert spread(10, 1) == (0,) * 9 + (1,)


def test_a_fraction_is_rounded_half_up_and_keeps_two_units_where_there_are_two():
    assert kept_size(56, 8, Fraction(1, 2)) == 32, "3.5 units"
    assert kept_size(32, 8, Fraction(1, 7)) == 16
    assert kept_size(8, 8, Fraction(1, 7)) == 8


SIDES = {"resnet": [96] * 2 + [160] * 4 + [224] * 4, "convnext": [160] * 6 + [224] * 4}
SIDES |= {"swin": SIDES["resnet"], "deit": [96] * 2 + [160] * 4 + [192] * 2 + [224] * 2}
REPLAYS = {
    "resnet": [4] * 2 + [2] * 4 + [1] * 4,
    "deit": [4] * 2 + [2] * 4 + [1] * 4,
    "swin": [2] * 2 + [1] * 8,
    "convnext": [1] * 10,
}


@pytest.mark.parametrize("name", SIDES)
def test_published_schedules_by_name(name):
    """For a patch of 224 voxels, the sizes are those of the authors' scripts."""
    of_images = ((224, 224, 224), (5, 5, 5))
    planned = schedule(of_images, 200, 250, frequency_schedule=name)
    assert [stage.patch_size for stage in planned.stages] == [(n, n, n) for n in SIDES[name]]
    assert [stage.replay for stage in planned.stages] == REPLAYS[name]
    assert [stage.augmentation for stage in planned.stages] == [n / 9 for n in range(10)]
    without = schedule(of_images, 200, 250, frequency_schedule=name, replay_batches=0)
    assert {stage.replay for stage in without.stages} == {1}


def test_listed_fractions_are_stages_of_equal_length():
    listed = ["1/4", 0.5, "3/4", 1]
    stages = schedule(BRAIN, 8, 250, frequency_fractions=listed)
    assert [stage.patch_size[0] for stage in stages.stages] == [64, 64, 96, 128], (
        "two units at least"
    )
    assert stages.epochs_of_stages == (2, 2, 2, 2)
    assert [stage.augmentation for stage in stages.stages] == [0, 1 / 3, 2 / 3, 1]
    assert [stage.replay for stage in stages.stages] == [4, 2, 1, 1]
    alone = schedule(BRAIN, 8, 250, frequency_fractions=[1])
    assert [stage.augmentation for stage in alone.stages] == [1], "one stage is at full strength"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frequency_fractions": [0.5, 0.75]}, "end at 0.75: the last stage must keep all"),
        ({"frequency_fractions": [0, 1]}, "must all be above 0 and at most 1"),
        ({"frequency_fractions": [1.5, 1]}, "must all be above 0 and at most 1"),
        ({"frequency_fractions": ["half", 1]}, "must all be numbers"),
        ({"frequency_fractions": ["1/0", 1]}, "must all be numbers"),
        ({"frequency_fractions": []}, "must all be above 0"),
        ({"frequency_schedule": "vgg"}, "known are resnet, swin, deit, convnext"),
        ({"replay": "half"}, "known are whole, mixed"),
    ],
)
def test_what_makes_no_schedule_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        schedule(BRAIN, 10, 5, **options)


@pytest.mark.parametrize("name", ["low_frequency", "low_frequency_iterations"])
def test_ablations_leave_one_half_of_the_curriculum(name):
    """Low-pass without the augmentation ramp, and the ramp without the low-pass."""
    both = schedule(HIPPOCAMPUS, 28, 32, name)
    flat = schedule(HIPPOCAMPUS, 28, 32, name, augmentation_ramp=False)
    assert [s.patch_size for s in flat.stages] == [s.patch_size for s in both.stages]
    assert {stage.augmentation for stage in flat.stages} == {1}
    ramp = schedule(HIPPOCAMPUS, 28, 32, name, lowpass="none")
    assert [s.augmentation for s in ramp.stages] == [s.augmentation for s in both.stages]
    assert {s.patch_size for s in ramp.stages} == {(40, 56, 40)}
    assert {(s.field_of_view, s.replay) for s in ramp.stages} == {(None, 1)}
    assert iterations_of_stages(ramp) == [32 * n for n in (3, 3, 3, 3, 2, 3, 3, 3, 3, 2)]


@given(plans(), st.integers(1, 9), st.sampled_from([None, 1, 12]))
def test_large_batches_keep_the_voxels_of_a_step_within_the_planned(plan, batch, limit):
    planned = schedule(plan, 20, 10, batch=batch, large_batches_early=True, max_batch=limit)
    whole = planned.stages[-1]
    assert whole.batch_size == batch
    for stage in planned.stages:
        assert batch <= stage.batch_size
        assert stage.voxels <= whole.voxels
        if limit is None:
            assert stage.voxels + prod(stage.patch_size) > whole.voxels, "one more does not fit"
        else:
            assert stage.batch_size <= max(limit, batch)


@given(plans())
def test_sizes_fit_the_network_and_never_shrink(plan):
    patch, pooling = plan
    stages = plan_bands(PatchPlan(patch, pooling, 2), replay=True)
    assert len(stages) == 10
    assert (stages[-1].patch_size, stages[-1].augmentation) == (patch, 1)
    for stage in stages:
        for size, planned, count in zip(stage.patch_size, patch, pooling, strict=True):
            assert size % 2**count == 0
            assert min(planned, 2 * 2**count) <= size <= planned
        assert (stage.field_of_view is None) == (stage.patch_size == patch)
    for smaller, larger in pairwise(stages):
        assert all(a <= b for a, b in zip(smaller.patch_size, larger.patch_size, strict=True))
        assert smaller.augmentation < larger.augmentation


@given(plans(), st.integers(1, 400), st.integers(1, 250))
def test_every_epoch_computes_the_same_within_rounding(plan, epochs, iterations):
    planned = schedule(plan, epochs, iterations)
    whole = iterations * planned.stages[-1].voxels
    for epoch in range(epochs):
        stage = planned.stages[planned.stage_of_epoch(epoch)]
        computed = planned.iterations_of_epoch(epoch) * stage.voxels
        assert abs(computed - whole) <= stage.voxels / 2
    assert planned.stages[planned.stage_of_epoch(epochs - 1)].patch_size == plan[0]


@settings(max_examples=60)
@given(plans(), st.integers(1, 40), st.integers(1, 6), CURRICULA, st.sampled_from([0, 64]))
def test_numbers_of_epochs_iterations_and_batches_fit(plan, epochs, iterations, name, kept):
    """Count one by one: every iteration is in its epoch, every batch in its iteration."""
    planned = schedule(plan, epochs, iterations, name, replay_batches=kept)
    iteration = batch = 0
    stage_before, loaded_of_stage = None, 0
    each = [0] * 10
    for epoch in range(epochs):
        assert planned.iterations_before(epoch) == iteration
        stage = planned.stage_of_epoch(epoch)
        if stage != stage_before:
            stage_before, loaded_of_stage = stage, 0
        for _ in range(min(planned.iterations_of_epoch(epoch), 40)):
            assert planned.stage_of_iteration(iteration) == stage
            assert planned.batches_before(iteration) == batch
            assert planned.replayable_before(iteration) == loaded_of_stage
            if planned.loads(iteration):
                assert planned.stage_of_batch(batch) == stage
                batch += 1
                loaded_of_stage += 1
            else:
                assert loaded_of_stage > 0, "there is something to repeat"
            iteration += 1
        skipped = planned.iterations_of_epoch(epoch) - 40
        if skipped > 0:  # long epochs are not counted to their end
            iteration += skipped
            loaded_of_stage += planned.batches_before(iteration) - batch
            batch = planned.batches_before(iteration)
            if planned.stage_of_iteration(iteration) != stage:
                loaded_of_stage = 0
        each[stage] += planned.iterations_of_epoch(epoch)
    assert planned.iterations_before(epochs) == iteration
    assert planned.batches_before(iteration) == batch
    last = planned.stage_of_epoch(epochs - 1)
    assert planned.stage_of_iteration(iteration + 99) == last, "prefetched"
    assert planned.stage_of_batch(batch + 99) == last
    assert iterations_of_stages(planned) == each


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: "x".join(map(str, plan[0])))
def test_two_thirds_of_the_epochs_are_two_thirds_of_the_computation_and_about_all_loads(plan):
    planned = schedule(plan, 667, 250)
    each = iterations_of_stages(planned)
    voxels = sum(n * stage.voxels for n, stage in zip(each, planned.stages, strict=True))
    assert voxels / (250_000 * planned.stages[-1].voxels) == pytest.approx(0.667, abs=0.002)
    loads = planned.batches_before(planned.iterations_before(667)) / 250_000
    assert 0.8 < loads < 1.1
    without = schedule(plan, 667, 250, replay_batches=0)
    assert 1.9 < without.batches_before(without.iterations_before(667)) / 250_000 < 3.1


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: "x".join(map(str, plan[0])))
def test_the_clock_of_iterations_computes_about_six_tenths_and_loads_all(plan):
    planned = schedule(plan, 1000, 250, "low_frequency_iterations")
    each = iterations_of_stages(planned)
    assert each == [25_000] * 10
    voxels = sum(n * stage.voxels for n, stage in zip(each, planned.stages, strict=True))
    assert 0.55 < voxels / (250_000 * planned.stages[-1].voxels) < 0.62
    assert planned.batches_before(250_000) == 250_000


def test_loads_of_a_stage_by_hand():
    """Stage 1 has 3 epochs of 467 iterations, and every fourth of them loads."""
    planned = schedule(HIPPOCAMPUS, 28, 32)
    assert [planned.loads(n) for n in range(5)] == [True, False, False, False, True]
    assert planned.batches_before(3 * 467) == ceil(3 * 467 / 4) == 351
    assert planned.stage_of_batch(350) == 0
    assert planned.stage_of_batch(351) == 1
    assert planned.replayable_before(3 * 467) == 0, "a stage begins with its own batch"
    assert planned.loads(3 * 467)
    assert planned.replayable_before(3 * 467 + 5) == 2
    first = planned.iterations_before(17)
    assert [planned.loads(first + n) for n in range(3)] == [True] * 3, "the planned size"


def test_a_patch_that_the_network_cannot_pool_is_refused():
    with pytest.raises(ValueError, match="axis 1 is not a multiple of 8"):
        schedule(((40, 52, 40), (3, 3, 3)), 10, 5)


def test_other_curricula_count_as_before():
    for name, seed in (("progressive", None), ("random", 7)):
        planned = schedule(HIPPOCAMPUS, 20, 5, name)
        assert planned.seed == seed
        for iteration in range(120):
            assert planned.batches_before(iteration) == iteration
            assert planned.loads(iteration)
            assert planned.stage_of_batch(iteration) == planned.stage_of_iteration(iteration)
        assert [planned.iterations_before(epoch) for epoch in range(21)] == list(range(0, 101, 5))
        assert {planned.iterations_of_epoch(epoch) for epoch in range(20)} == {5}
        assert {stage.loaded_size == stage.patch_size for stage in planned.stages} == {True}
        assert prod(planned.stages[-1].loaded_size) == 40 * 56 * 40


def test_listed_stages_replay_as_resnet_up_to_160_of_224_frequencies():
    settings = CurriculumSettings("low_frequency", frequency_fractions=["3/7", "5/7", "6/7", 1])
    assert choose_schedule(settings).replays == {Fraction(3, 7): 4, Fraction(5, 7): 2}
