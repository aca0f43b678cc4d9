"""The schedules of 2D plans, against tables by hand and functions that work in another way."""

from fractions import Fraction
from itertools import accumulate, zip_longest
from math import prod

import pytest

from workflow_scripts.trainers.curricula.schedules.custom_stages import listed_stages
from workflow_scripts.trainers.curricula.schedules.frequency_stages import plan_bands
from workflow_scripts.trainers.curricula.schedules.patch_plan import (
    LARGEST_2D_BATCH,
    PatchPlan,
    count_poolings,
)
from workflow_scripts.trainers.curricula.schedules.planner import plan_schedule
from workflow_scripts.trainers.curricula.schedules.schedule import Stage, plan_stages
from workflow_scripts.trainers.curricula.schedules.settings import (
    CurriculumSettings,
    TrainingLength,
)

# Ten made-up plans: patch, poolings, batch.
PLANS = [
    ((56, 40), (3, 3), 366),
    ((512, 512), (7, 7), 12),
    ((320, 256), (6, 6), 25),
    ((256, 224), (5, 5), 35),
    ((192, 160), (5, 5), 105),
    ((40, 192), (3, 5), 60),
    ((640, 512), (7, 7), 9),
    ((16, 16), (2, 2), 1),
    ((64, 64), (4, 6), 49),
    ((1024, 96), (6, 4), 14),
]
PGPS, SHORTEST = (
    ("progressive", "random", "progressive_plus"),
    (
        "progressive_efficiency",
        "progressive_performance",
    ),
)


def stages_of(plan, curriculum, **options):
    return plan_stages(PatchPlan(*plan), CurriculumSettings(curriculum, **options))


def sizes(plan, curriculum):
    return [stage.patch_size for stage in stages_of(plan, curriculum)]


def walked(start, units, axes):
    """Return the sizes from `start` on, growing the given axes one after the other."""
    steps = [tuple(units[n] * (n == axis) for n in range(2)) for axis in axes]
    return list(accumulate(steps, lambda a, b: (a[0] + b[0], a[1] + b[1]), initial=tuple(start)))


def in_turn(patch, pooling):
    """Interleave the steps of axis 1 and of axis 0; what is left over of either comes last."""
    units = [2**count for count in pooling]
    start = [min(2 * units[0], patch[0]), units[1]]
    left = [(patch[n] - start[n]) // units[n] for n in range(2)]
    pairs = zip_longest([1] * left[1], [0] * left[0])
    return walked(start, units, [axis for pair in pairs for axis in pair if axis is not None])


def by_length(patch, pooling, start):
    """Sort the lengths that both axes will have; the first axis comes first among equals."""
    units = [2**count for count in pooling]
    lengths = [(n, axis) for axis in range(2)
               for n in range(start[axis] + units[axis], patch[axis] + 1, units[axis])]  # fmt: skip
    return walked(start, units, [axis for _, axis in sorted(lengths)])


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: "x".join(map(str, plan[0])))
def test_golden_tables(plan):
    patch, pooling, batch = plan
    for curriculum in PGPS:
        assert sizes(plan, curriculum) == in_turn(patch, pooling)
    units = [2**count for count in pooling]
    for curriculum in SHORTEST:
        assert sizes(plan, curriculum) == by_length(patch, pooling, units)
    two = [min(2 * units[0], patch[0]), units[1]]
    without = stages_of(plan, "progressive_efficiency", one_voxel_bottleneck=False)
    assert [stage.patch_size for stage in without] == by_length(patch, pooling, two)

    assert stages_of(plan, "constant") == [Stage(patch, batch)]
    for curriculum in ("progressive", "random", "progressive_efficiency"):
        assert {stage.batch_size for stage in stages_of(plan, curriculum)} == {batch}
    filled = [
        max(batch, min(1024, int(Fraction(batch * prod(patch), prod(size)))))
        for size in sizes(plan, "progressive_performance")
    ]
    assert [stage.batch_size for stage in stages_of(plan, "progressive_performance")] == filled


def test_tables_by_hand():
    assert sizes(((56, 40), (3, 3), 366), "progressive") == [
        (16, 8), (16, 16), (24, 16), (24, 24), (32, 24), (32, 32), (40, 32), (40, 40), (48, 40),
        (56, 40),
    ]  # fmt: skip
    assert sizes(((512, 512), (7, 7), 12), "progressive_efficiency") == [
        (128, 128), (256, 128), (256, 256), (384, 256), (384, 384), (512, 384), (512, 512),
    ]  # fmt: skip
    assert sizes(((40, 192), (3, 5), 60), "progressive_performance") == [
        (8, 32), (16, 32), (24, 32), (32, 32), (40, 32), (40, 64), (40, 96), (40, 128), (40, 160),
        (40, 192),
    ]  # fmt: skip
    filled = stages_of(((512, 512), (7, 7), 12), "progressive_performance")
    assert [stage.batch_size for stage in filled] == [192, 96, 48, 32, 21, 16, 12]
    plus = stages_of(((512, 512), (7, 7), 1), "progressive_plus")
    assert [stage.batch_size for stage in plus] == [2, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("batch", "options", "smallest"),
    [
        (366, {}, LARGEST_2D_BATCH),
        (366, {"max_batch": 500}, 500),
        (366, {"max_batch": 10}, 366),
        (366, {"max_batch": 10**6}, 366 * 35),
        (1500, {}, 1500),
        (20, {}, 700),
    ],
)
def test_batches_of_2d_have_a_limit_by_default(batch, options, smallest):
    found = stages_of(((56, 40), (3, 3), batch), "progressive_performance", **options)
    assert found[0] == Stage((8, 8), smallest)
    assert found[-1] == Stage((56, 40), batch)
    assert all(stage.voxels <= batch * 56 * 40 for stage in found)


def test_low_frequencies_of_a_slice():
    plan = PatchPlan((256, 224), (5, 5), 35)
    bands = plan_bands(plan, replay=True)
    kept = [(96, 96)] * 2 + [(192, 160)] * 4 + [(256, 224)] * 4
    assert [stage.patch_size for stage in bands] == kept
    assert {stage.loaded_size for stage in bands} == {(256, 224)}
    assert {stage.batch_size for stage in bands} == {35}
    large = plan_bands(
        PatchPlan((56, 40), (3, 3), 366), CurriculumSettings(large_batches_early=True), replay=False
    )
    assert large[0] == Stage((24, 16), LARGEST_2D_BATCH, (56, 40), augmentation=0.0)


def test_equal_computation_takes_fewer_iterations_than_in_3d():
    """3/7 of the frequencies: (7/3)² = 5.4 times the iterations, before sizes are rounded."""
    schedule = plan_schedule(
        PatchPlan((448, 448), (5, 5), 12),
        TrainingLength(10, 250, 7),
        CurriculumSettings("low_frequency"),
    )
    assert schedule.stages[0].patch_size == (192, 192)
    assert schedule.iterations_of_epoch(0) == round(250 * (7 / 3) ** 2)


def test_listed_stages_have_the_axes_of_the_plan():
    plan = PatchPlan((56, 40), (3, 3), 366)
    entry = {"batch_size": 2, "epochs": 1}
    stages, _ = listed_stages(plan, [{"patch_size": [24, 8], **entry}], 1)
    assert stages == [Stage((24, 8), 2)]
    with pytest.raises(ValueError, match=r"stage 1: patch size \[8, 24, 8\] needs 2 axes"):
        listed_stages(plan, [{"patch_size": [8, 24, 8], **entry}], 1)


def test_a_patch_that_the_network_cannot_pool_is_refused():
    with pytest.raises(ValueError, match=r"44 on axis 1 is not a multiple of 8.* 40 and 48$"):
        PatchPlan((56, 44), (3, 3), 2)


def test_a_single_number_is_the_stride_of_both_axes():
    assert count_poolings([1, [2, 2], 2, [1, 2]]) == (2, 3)
