"""Schedules with growing batches, the journal's curricula, pacing and listed stages."""

import json
from collections import Counter
from itertools import pairwise
from math import ceil, floor, prod
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_scripts.trainers.curricula.schedules.custom_stages import listed_stages
from workflow_scripts.trainers.curricula.schedules.patch_plan import PatchPlan
from workflow_scripts.trainers.curricula.schedules.schedule import (
    Schedule,
    Stage,
    pace,
    plan_stages,
    stage_at,
)
from workflow_scripts.trainers.curricula.schedules.settings import CurriculumSettings

PLANS = Path(__file__).parents[2] / "config" / "published" / "nnunet_plans.tsv"
JOURNAL = ("progressive_efficiency", "progressive_performance")
BRAIN, HIPPOCAMPUS, PROSTATE = (128, 128, 128), (40, 56, 40), (20, 320, 256)
PROSTATE_SIZES = [
    (4, 64, 64), (8, 64, 64), (12, 64, 64), (16, 64, 64), (20, 64, 64), (20, 128, 64),
    (20, 128, 128), (20, 192, 128), (20, 192, 192), (20, 256, 192), (20, 256, 256), (20, 320, 256),
]  # fmt: skip


def plans():
    """Return a strategy of (patch, pooling): any multiple of the units, including a single one."""

    def of_pooling(pooling):
        axes = [st.integers(1, 7).map(lambda n, count=count: n * 2**count) for count in pooling]
        return st.tuples(st.tuples(*axes), st.just(pooling))

    return st.tuples(*[st.integers(0, 6)] * 3).flatmap(of_pooling)


def stages_of(patch, pooling, batch, curriculum, **options):
    plan = PatchPlan(patch, pooling, batch)
    return plan_stages(plan, CurriculumSettings(curriculum, **options))


def sizes(patch, pooling, curriculum="progressive_efficiency", **options):
    return [s.patch_size for s in stages_of(patch, pooling, 2, curriculum, **options)]


def batches(patch, pooling, batch, curriculum, **options):
    return [s.batch_size for s in stages_of(patch, pooling, batch, curriculum, **options)]


def voxel_fraction(stages, epochs=1000):
    """Return the voxels of a whole training, relative to one at the last stage alone."""
    voxels = sum(stages[stage_at(epoch, epochs, len(stages))].voxels for epoch in range(epochs))
    return voxels / (epochs * stages[-1].voxels)


def grown_axes(result):
    """Return the axis that grows from each size to the next; it must be exactly one."""
    axes = []
    for smaller, larger in pairwise(result):
        (axis,) = [n for n, (a, b) in enumerate(zip(smaller, larger, strict=True)) if a != b]
        axes.append(axis)
    return axes


# --- PGPS+


@pytest.mark.parametrize(
    ("patch", "pooling", "batch", "seed", "expected"),
    [
        (BRAIN, (5, 5, 5), 2, None, [24, 12, 6, 4, 3, 2, 2, 2, 2]),
        (BRAIN, (5, 5, 5), 2, 2, [24, 12, 6, 4, 3, 2, 2, 2, 2]),
        (HIPPOCAMPUS, (3, 3, 3), 9, 2, [24, 12, *[9] * 12]),
        (
            *(HIPPOCAMPUS, (3, 3, 3), 9, None),
            [672, 336, 168, 112, 75, 50, 38, 29, 22, 18, 15, 12, 10, 9],
        ),
    ],
    ids=["brain", "brain_of_two", "hippocampus_of_two", "hippocampus"],
)
def test_plus_golden_tables(patch, pooling, batch, seed, expected):
    options = {"plus_seed": seed}
    assert batches(patch, pooling, batch, "progressive_plus", **options) == expected
    assert sizes(patch, pooling, "progressive_plus", **options) == sizes(
        patch, pooling, "progressive"
    )


def test_plus_voxel_fraction():
    stages = stages_of(BRAIN, (5, 5, 5), 2, "progressive_plus")
    assert voxel_fraction(stages) == pytest.approx(0.518, abs=5e-4)


def test_plus_seed_is_the_authors_unless_set():
    assert batches(HIPPOCAMPUS, (3, 3, 3), 9, "progressive_plus") == [24, 12, *[9] * 12]
    alone = batches(BRAIN, (5, 5, 5), 1, "progressive_plus")
    assert alone == batches(BRAIN, (5, 5, 5), 1, "progressive_plus", plus_seed=1)


# Results of `plan_batch_size` in the authors' `nnUNetTrainer_PGPS+.py` for the published plans:
# the batches above the planned one, and the number of stages.
PLUS_BATCHES = {
    "Task01_BrainTumour": ([24, 12, 6, 4, 3], 9),
    "Task02_Heart": ([24, 12, 6, 4, 3], 13),
    "Task03_Liver": ([24, 12, 6, 4, 3], 9),
    "Task04_Hippocampus": ([24, 12], 14),
    "Task05_Prostate": ([24, 12, 6, 4, 3], 11),
    "Task06_Lung": ([24, 12, 6, 4, 3], 13),
    "Task07_Pancreas": ([24, 12, 6, 4, 3], 16),
    "Task08_HepaticVessel": ([24, 12, 6, 4, 3], 13),
    "Task09_Spleen": ([24, 12, 6, 4, 3], 12),
    "Task10_Colon": ([24, 12, 6, 4, 3], 16),
}


def test_plus_batches_on_the_published_plans():
    published = pd.read_csv(PLANS, sep="\t", index_col="task")
    assert set(published.index) == set(PLUS_BATCHES)
    for task, (larger, stages) in PLUS_BATCHES.items():
        row = published.loc[task]
        plan = json.loads(row["patch_size"]), json.loads(row["pool_per_axis"])
        found = batches(*map(tuple, plan), int(row["batch_size"]), "progressive_plus")
        assert found == [*larger, *[row["batch_size"]] * (stages - len(larger))], task


@given(plans(), st.integers(1, 20), st.none() | st.integers(1, 20))
def test_plus_batches_follow_the_recursion(plan, batch, seed):
    """Go backwards from the seed, floor at every step, and use at least the planned batch."""
    patch, pooling = plan
    seed = seed and min(seed, batch)
    stages = stages_of(patch, pooling, batch, "progressive_plus", plus_seed=seed)
    counted = seed or batch
    for number in reversed(range(len(stages))):
        if number < len(stages) - 1:
            larger, smaller = stages[number + 1].patch_size, stages[number].patch_size
            counted = floor(counted * prod(larger) / prod(smaller))
        assert stages[number].batch_size == (counted if counted > batch else batch)
    planned = batch * prod(patch)
    assert all(stage.voxels <= planned for stage in stages)
    assert stages[-1] == Stage(patch, batch)


# --- the journal's curricula


@pytest.mark.parametrize("curriculum", JOURNAL)
def test_prostate_sequence(curriculum):
    assert sizes(PROSTATE, (2, 6, 6), curriculum) == PROSTATE_SIZES


@pytest.mark.parametrize(
    ("patch", "pooling", "number", "epochs", "last", "fraction"),
    [
        (BRAIN, (5, 5, 5), 10, 100, 100, 0.344),
        ((80, 192, 160), (4, 5, 5), 14, 71, 77, 0.311),
        (HIPPOCAMPUS, (3, 3, 3), 15, 66, 76, 0.331),
        (PROSTATE, (2, 6, 6), 12, 83, 87, 0.303),
        ((40, 224, 224), (3, 5, 5), 17, 58, 72, 0.315),
        ((64, 192, 192), (4, 5, 5), 14, 71, 77, 0.326),
        ((64, 192, 160), (4, 5, 5), 13, 76, 88, 0.332),
        ((56, 192, 160), (3, 5, 5), 16, 62, 70, 0.273),
    ],
)
def test_efficiency_golden_table(patch, pooling, number, epochs, last, fraction):
    stages = stages_of(patch, pooling, 9, "progressive_efficiency")
    assert {stage.batch_size for stage in stages} == {9}
    assert pace(stages, 1000, "equal") == (*[epochs] * (number - 1), last)
    assert voxel_fraction(stages) == pytest.approx(fraction, abs=5.01e-4)


@pytest.mark.parametrize(
    ("patch", "pooling", "batch", "expected"),
    [
        (BRAIN, (5, 5, 5), 2, [128, 64, 32, 16, 10, 7, 4, 3, 2, 2]),
        (PROSTATE, (2, 6, 6), 2, [200, 100, 66, 50, 40, 20, 10, 6, 4, 3, 2, 2]),
        (
            *(HIPPOCAMPUS, (3, 3, 3), 9),
            [1575, 787, 393, 196, 131, 87, 58, 43, 32, 24, 19, 15, 12, 10, 9],
        ),
    ],
    ids=["brain", "prostate", "hippocampus"],
)
def test_performance_golden_tables(patch, pooling, batch, expected):
    stages = stages_of(patch, pooling, batch, "progressive_performance")
    assert [stage.batch_size for stage in stages] == expected
    assert 0.935 <= voxel_fraction(stages) <= 0.985


@given(plans(), st.integers(1, 20), st.booleans())
def test_journal_sizes_fit_the_network_and_end_with_the_plan(plan, batch, one_voxel):
    patch, pooling = plan
    units = [2**count for count in pooling]
    results = [
        stages_of(patch, pooling, batch, name, one_voxel_bottleneck=one_voxel) for name in JOURNAL
    ]
    assert len({tuple(s.patch_size for s in stages) for stages in results}) == 1
    for stages in results:
        result = [stage.patch_size for stage in stages]
        assert stages[-1] == Stage(patch, batch)
        assert all(n % unit == 0 for size in result for n, unit in zip(size, units, strict=True))
        for axis, (smaller, larger) in zip(grown_axes(result), pairwise(result), strict=True):
            assert larger[axis] - smaller[axis] == units[axis]
            assert prod(larger) > prod(smaller)
        first = list(units)
        if not one_voxel and patch[0] > units[0]:
            first[0] *= 2
        assert list(result[0]) == first
        number = 1 + sum((p - f) // u for p, f, u in zip(patch, first, units, strict=True))
        assert len(result) == number


@given(plans(), st.booleans())
def test_the_axis_that_is_then_the_shortest_grows(plan, one_voxel):
    patch, pooling = plan
    units = [2**count for count in pooling]
    result = sizes(patch, pooling, one_voxel_bottleneck=one_voxel)
    for size, axis in zip(result, grown_axes(result), strict=False):
        grown = {n: size[n] + units[n] for n in range(3) if size[n] < patch[n]}
        assert all(grown[axis] <= other for other in grown.values())
        assert all(grown[axis] < grown[n] for n in grown if n < axis), "a tie goes to the first"


@given(plans(), st.integers(1, 20))
def test_performance_fills_the_voxels_of_the_plan(plan, batch):
    patch, pooling = plan
    planned = batch * prod(patch)
    for stage in stages_of(patch, pooling, batch, "progressive_performance"):
        assert stage.voxels <= planned < stage.voxels + prod(stage.patch_size)


@pytest.mark.parametrize(
    ("curriculum", "limit", "expected"),
    [
        ("progressive_performance", 16, [16, 16, 16, 16, 10, 7, 4, 3, 2, 2]),
        ("progressive_performance", 1, [2] * 10),
        ("progressive_plus", 5, [5, 5, 5, 4, 3, 2, 2, 2, 2]),
    ],
)
def test_max_batch_by_hand(curriculum, limit, expected):
    assert batches(BRAIN, (5, 5, 5), 2, curriculum, max_batch=limit) == expected


@given(
    plans(),
    st.integers(1, 20),
    st.integers(1, 200),
    st.sampled_from([*JOURNAL, "progressive_plus", "progressive"]),
)
def test_max_batch_caps_but_never_below_the_plan(plan, batch, limit, curriculum):
    patch, pooling = plan
    free = batches(patch, pooling, batch, curriculum)
    capped = batches(patch, pooling, batch, curriculum, max_batch=limit)
    for one, other in zip(free, capped, strict=True):
        assert other == (one if one <= limit else max(limit, batch))
    assert sizes(patch, pooling, curriculum, max_batch=limit) == sizes(patch, pooling, curriculum)


def test_two_voxels_at_the_bottleneck():
    """Without the one-voxel stage, the journal's order starts where the conference's does."""
    options = {"one_voxel_bottleneck": False}
    assert sizes(PROSTATE, (2, 6, 6), **options) == PROSTATE_SIZES[1:]
    assert sizes((4, 128, 128), (2, 6, 6), **options) == [
        (4, 64, 64), (4, 128, 64), (4, 128, 128),
    ]  # fmt: skip
    assert sizes(BRAIN, (5, 5, 5), "progressive", one_voxel_bottleneck=True)[0] == (64, 32, 32)


# --- pacing


def of_volumes(*volumes):
    return [Stage((volume, 1, 1), 2) for volume in volumes]


def volumes(least=1):
    return st.lists(st.integers(least, 10**6), min_size=1, max_size=20)


@given(volumes(), st.integers(1, 2000))
def test_equal_pacing_is_that_of_stage_at(given_volumes, epochs):
    number = len(given_volumes)
    counts = Counter(stage_at(epoch, epochs, number) for epoch in range(epochs))
    each = pace(of_volumes(*given_volumes), epochs, "equal")
    assert each == tuple(counts[stage] for stage in range(number))


@pytest.mark.parametrize(
    ("given_volumes", "epochs", "expected"),
    [
        ((1, 2, 5), 80, (10, 20, 50)),
        ((1, 2, 5), 10, (1, 3, 6)),
        ((1, 2, 5), 4, (1, 1, 2)),
        ((1, 2, 5), 3, (1, 1, 1)),
        ((1, 2, 5), 2, (1, 0, 1)),
        ((1, 2, 5), 1, (0, 0, 1)),
        ((7, 7), 3, (1, 2)),
        ((1, 1, 1, 97), 10, (1, 1, 1, 7)),
        ((1, 1, 30, 68), 8, (1, 1, 1, 5)),
    ],
)
def test_pacing_by_volume_by_hand(given_volumes, epochs, expected):
    assert pace(of_volumes(*given_volumes), epochs, "volume") == expected


@given(volumes(), st.integers(1, 2000))
def test_pacing_by_volume(given_volumes, epochs):
    each = pace(of_volumes(*given_volumes), epochs, "volume")
    assert sum(each) == epochs
    if epochs < len(given_volumes):
        assert each == pace(of_volumes(*given_volumes), epochs, "equal")
        return
    assert min(each) >= 1
    pairs = list(zip(given_volumes, each, strict=True))
    assert all(a <= b for v, a in pairs for w, b in pairs if v < w), "more epochs for the larger"
    quotas = [epochs * volume / sum(given_volumes) for volume in given_volumes]
    if min(quotas) >= 1:
        assert all(abs(n - quota) < 1 for n, quota in zip(each, quotas, strict=True))
    else:
        assert all(n <= max(1, ceil(q)) for n, q in zip(each, quotas, strict=True))


def test_volume_means_that_of_the_patch_not_of_the_batch():
    stages = [Stage((1, 1, 1), 300), Stage((3, 1, 1), 1)]
    assert pace(stages, 8, "volume") == (2, 6)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8).filter(any), st.integers(1, 3))
def test_a_schedule_keeps_to_the_epochs_of_its_stages(each, iterations):
    epochs = sum(each)
    stages = tuple(of_volumes(*range(1, len(each) + 1)))
    schedule = Schedule(stages, epochs, iterations, None, tuple(each))
    expected = [number for number, count in enumerate(each) for _ in range(count)]
    assert [schedule.stage_of_epoch(epoch) for epoch in range(epochs)] == expected
    of_iterations = [schedule.stage_of_iteration(n) for n in range(epochs * iterations)]
    assert of_iterations == [number for number in expected for _ in range(iterations)]
    assert schedule.stage_of_iteration(epochs * iterations + 7) == expected[-1], "prefetched"


@pytest.mark.parametrize("each", [(4, 4), (1, 2, 5, 0), (1, 2, 4)])
def test_epochs_that_do_not_fit_the_stages_are_refused(each):
    schedule = Schedule(tuple(of_volumes(1, 2, 5)), 8, 2, None, each)
    with pytest.raises(ValueError, match=r"epochs of the stages \(.*\): not 3 that add up to"):
        schedule.stage_of_epoch(0)


# --- stages that a user lists


def listed(*stages):
    return [{"patch_size": list(p), "batch_size": b, "epochs": n} for p, b, n in stages]


def test_a_list_of_stages_is_taken_as_it_is():
    """This includes shrinking patches, a repeated size, and an end that is not the plan's size."""
    given_stages = listed(((8, 16, 16), 4, 2), ((40, 56, 40), 9, 1), ((8, 16, 16), 5, 3))
    stages, each = listed_stages(PatchPlan(HIPPOCAMPUS, (3, 3, 3), 2), given_stages, 6)
    assert stages == [Stage((8, 16, 16), 4), Stage((40, 56, 40), 9), Stage((8, 16, 16), 5)]
    assert each == (2, 1, 3)


@pytest.mark.parametrize(
    ("given_stages", "message"),
    [
        ([], "the list of stages is empty"),
        (listed(((8, 8), 1, 2)), r"stage 1: patch size \[8, 8\] needs 3 axes"),
        (
            listed(((8, 64, 64), 1, 1), ((8, 64, 100), 1, 1)),
            r"^stage 2: patch size \[8, 64, 100\]: 100 on axis 2 is not a multiple of 64, which "
            "this plan's network requires; the nearest are 64 and 128$",
        ),
        (listed(((3, 64, 64), 1, 2)), "3 on axis 0 is not a multiple of 4.*nearest are 4$"),
        (listed(((8, 0, 64), 1, 2)), "stage 1.* 0 on axis 1 is not a multiple of 64"),
        (listed(((8, 64, 64), 0, 2)), "stage 1: batch_size and epochs must be at least 1"),
        (
            listed(((8, 64, 64), 1, 2), ((8, 64, 64), 1, 0)),
            "stage 2: batch_size and epochs must be at least 1",
        ),
        (
            listed(((8, 64, 64), 1, 1), ((8, 128, 64), 1, 2)),
            "epochs of the stages add up to 3, but epochs is 2",
        ),
    ],
)
def test_a_wrong_list_is_refused(given_stages, message):
    with pytest.raises(ValueError, match=message):
        listed_stages(PatchPlan(PROSTATE, (2, 6, 6), 2), given_stages, 2)


@given(st.integers(1, 400), st.integers(0, 6))
def test_the_nearest_sizes_are_told(size, count):
    """They are the two valid sizes around a wrong one, or the smallest unit alone below it."""
    unit = 2**count
    plan = PatchPlan((unit, 4, 4), (count, 2, 2), 2)
    call = (plan, listed(((size, 4, 4), 1, 1)), 1)
    if size % unit == 0:
        assert listed_stages(*call)[0][0].patch_size == (size, 4, 4)
        return
    right = [n for n in range(unit, 1000, unit) if abs(n - size) < unit]
    with pytest.raises(ValueError, match=f"the nearest are {' and '.join(map(str, right))}$"):
        listed_stages(*call)


def test_a_seed_above_the_planned_batch_is_refused():
    """The last stage would not be the plan's."""
    with pytest.raises(ValueError, match="plus_seed 5 is larger than the planned batch of 2"):
        stages_of((40, 56, 40), (3, 3, 3), 2, "progressive_plus", plus_seed=5)


@pytest.mark.parametrize("epoch", [-3, 10])
def test_an_epoch_outside_of_the_training_has_no_stage(epoch):
    stages = tuple(stages_of((16, 8, 8), (2, 2, 2), 2, "progressive_efficiency"))
    with pytest.raises(ValueError, match="outside a training of 10 epochs"):
        Schedule(stages, 10, 1).stage_of_epoch(epoch)
