"""The schedules against hand-computed tables, the formulas of PGPS and random plans."""

from collections import Counter
from dataclasses import FrozenInstanceError
from itertools import pairwise
from math import ceil, prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_scripts.trainers.curricula.schedules.patch_plan import PatchPlan, count_poolings
from workflow_scripts.trainers.curricula.schedules.schedule import (
    Schedule,
    Stage,
    plan_stages,
    stage_at,
)
from workflow_scripts.trainers.curricula.schedules.settings import CurriculumSettings

BRAIN = [
    (64, 32, 32), (64, 64, 32), (64, 64, 64), (96, 64, 64), (96, 96, 64), (96, 96, 96),
    (128, 96, 96), (128, 128, 96), (128, 128, 128),
]  # fmt: skip
HIPPOCAMPUS = [
    (16, 8, 8), (16, 16, 8), (16, 16, 16), (24, 16, 16), (24, 24, 16), (24, 24, 24), (32, 24, 24),
    (32, 32, 24), (32, 32, 32), (40, 32, 32), (40, 40, 32), (40, 40, 40), (40, 48, 40),
    (40, 56, 40),
]  # fmt: skip
# The middle axis grows alone once the others are full; axis 0 starts full if it has two units.
FLAT = [(8, 64, 64), (8, 128, 64), (8, 128, 128), (8, 192, 128), (8, 256, 128)]


def plans():
    """Return a strategy of (patch, pooling): any multiple of the units, including a single one."""

    def of_pooling(pooling):
        axes = [st.integers(1, 7).map(lambda n, count=count: n * 2**count) for count in pooling]
        return st.tuples(st.tuples(*axes), st.just(pooling))

    return st.tuples(*[st.integers(0, 6)] * 3).flatmap(of_pooling)


def stages_of(patch, pooling, batch, curriculum):
    return plan_stages(PatchPlan(patch, pooling, batch), CurriculumSettings(curriculum))


def sizes(patch, pooling, curriculum="progressive", batch=2):
    return [stage.patch_size for stage in stages_of(patch, pooling, batch, curriculum)]


def progressive(patch, pooling, epochs, iterations=1):
    stages = stages_of(patch, pooling, 2, "progressive")
    return Schedule(tuple(stages), epochs, iterations)


@pytest.mark.parametrize("curriculum", ["progressive", "random"])
@pytest.mark.parametrize(
    ("pooling", "table"),
    [((5, 5, 5), BRAIN), ((3, 3, 3), HIPPOCAMPUS), ((2, 6, 6), FLAT)],
    ids=["brain", "hippocampus", "flat"],
)
def test_golden_tables(pooling, table, curriculum):
    stages = stages_of(table[-1], pooling, 9, curriculum)
    assert [stage.patch_size for stage in stages] == table
    assert {stage.batch_size for stage in stages} == {9}


def test_constant_is_the_plan_alone():
    assert stages_of((40, 56, 40), (3, 3, 3), 9, "constant") == [Stage((40, 56, 40), 9)]


def test_epochs_of_the_paper_s_length():
    schedule = progressive((128,) * 3, (5, 5, 5), 1000)
    counts = Counter(schedule.stage_of_epoch(epoch) for epoch in range(1000))
    assert counts == dict.fromkeys(range(8), 111) | {8: 112}
    assert [schedule.stage_of_epoch(epoch) for epoch in (110, 111, 887, 888, 999)] == [
        0, 1, 7, 8, 8,
    ]  # fmt: skip


def test_voxel_fraction_of_the_progressive_arm():
    schedule = progressive((128,) * 3, (5, 5, 5), 1000)
    voxels = sum(schedule.stages[schedule.stage_of_epoch(e)].voxels for e in range(1000))
    assert voxels / (1000 * 2 * 128**3) == pytest.approx(0.3808, abs=5e-5)


def test_voxels_and_label():
    stage = Stage((40, 56, 40), 9)
    assert stage.voxels == 9 * 40 * 56 * 40
    assert stage.label == "40x56x40"


@given(plans())
def test_number_of_stages_follows_the_formula(plan):
    patch, pooling = plan
    units = [2**count for count in pooling]
    first = [min(patch[0], 2 * units[0]), units[1], units[2]]
    grown = sum(ceil((p - m) / u) for p, m, u in zip(patch, first, units, strict=True))
    assert len(sizes(patch, pooling)) == 1 + grown
    assert sizes(patch, pooling)[0] == tuple(first)


@given(plans())
def test_sizes_fit_the_network_and_grow_one_axis_by_one_unit(plan):
    patch, pooling = plan
    units = [2**count for count in pooling]
    result = sizes(patch, pooling)
    assert result[-1] == patch
    assert all(n % unit == 0 for size in result for n, unit in zip(size, units, strict=True))
    for smaller, larger in pairwise(result):
        steps = [b - a for a, b in zip(smaller, larger, strict=True)]
        (axis,) = [axis for axis, step in enumerate(steps) if step]
        assert steps[axis] == units[axis]
    volumes = [prod(size) for size in result]
    assert volumes == sorted(set(volumes))


@given(plans())
def test_axes_take_turns(plan):
    patch, pooling = plan
    result = sizes(patch, pooling)
    grown = [
        next(axis for axis in range(3) if larger[axis] > smaller[axis])
        for smaller, larger in pairwise(result)
    ]
    turn = 1
    for axis, before in zip(grown, result, strict=False):
        while turn % 3 != axis:
            assert before[turn % 3] == patch[turn % 3], "an axis that is not full was passed over"
            turn += 1
        turn += 1


@given(plans(), st.integers(1, 2000))
def test_every_training_ends_at_the_planned_size(plan, epochs):
    patch, pooling = plan
    schedule = progressive(patch, pooling, epochs)
    number = len(schedule.stages)
    order = [schedule.stage_of_epoch(epoch) for epoch in range(epochs)]
    assert order == sorted(order)
    assert schedule.stages[order[-1]].patch_size == patch
    counts = Counter(order)
    assert sum(counts.values()) == epochs
    if epochs >= number:
        each = epochs // number
        assert counts == dict.fromkeys(range(number - 1), each) | {
            number - 1: epochs - each * (number - 1)
        }
    else:
        assert set(counts.values()) == {1}
        assert order[0] == (0 if epochs > 1 else number - 1)


@pytest.mark.parametrize(
    ("epochs", "number", "expected"),
    [
        (1, 14, [13]),
        (1, 1, [0]),
        (2, 14, [0, 13]),
        (3, 9, [0, 4, 8]),
        (4, 5, [0, 1, 3, 4]),
        (5, 5, [0, 1, 2, 3, 4]),
        (8, 3, [0, 0, 1, 1, 2, 2, 2, 2]),
    ],
)
def test_stage_at_by_hand(epochs, number, expected):
    assert [stage_at(epoch, epochs, number) for epoch in range(epochs)] == expected


@pytest.mark.parametrize(
    ("epoch", "epochs", "number", "message"),
    [
        (-1, 10, 3, "epoch -1 is outside a training of 10 epochs"),
        (10, 10, 3, "epoch 10 is outside"),
        (0, 0, 3, "epoch 0 is outside"),
        (0, 10, 0, "at least one stage"),
    ],
)
def test_stage_at_refuses(epoch, epochs, number, message):
    with pytest.raises(ValueError, match=message):
        stage_at(epoch, epochs, number)


@pytest.mark.parametrize(
    ("patch", "pooling", "curriculum", "message"),
    [
        ((40, 56, 40), (3, 3, 3), "progresive", "unknown curriculum 'progresive'; known are const"),
        ((40, 52, 40), (3, 3, 3), "progressive", "axis 1 is not a multiple of 8"),
        ((0, 56, 40), (3, 3, 3), "constant", "axis 0 is not a multiple"),
        ((56, 40), (3, 3, 3), "progressive", "needs 3 axes"),
    ],
)
def test_a_plan_or_curriculum_that_cannot_be_is_refused(patch, pooling, curriculum, message):
    with pytest.raises(ValueError, match=message):
        stages_of(patch, pooling, 2, curriculum)


@pytest.mark.parametrize(
    ("strides", "expected"),
    [
        ([[1, 1, 1], [2, 2, 2], [2, 2, 2], [1, 2, 2]], (2, 3, 3)),
        ([1, 2, [1, 2, 2]], (1, 2, 2)),
        ([[1, 1, 1]], (0, 0, 0)),
        ([[1, 1], [2, 2]], (1, 1)),
    ],
)
def test_count_poolings(strides, expected):
    assert count_poolings(strides) == expected


def test_a_plan_knows_its_units_and_is_checked_once():
    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
    plan = PatchPlan.from_strides([20, 24, 48], strides, 2)
    assert plan == PatchPlan((20, 24, 48), (2, 3, 3), 2)
    assert plan.units == (4, 8, 8)
    with pytest.raises(ValueError, match=r"20 on axis 1 .* of 8.*; the nearest are 16 and 24$"):
        PatchPlan.from_strides([20, 20, 48], strides, 2)
    with pytest.raises(ValueError, match="a batch of 0 is empty"):
        PatchPlan.from_strides([20, 24, 48], strides, 0)
    with pytest.raises(FrozenInstanceError):
        plan.batch_size = 3


def test_other_strides_are_refused():
    with pytest.raises(ValueError, match="axis 2 has a stride of 4"):
        count_poolings([[1, 1, 1], [2, 2, 4]])


@pytest.mark.parametrize("epochs", [1, 5, 14, 30])
def test_iterations_follow_their_epoch(epochs):
    schedule = progressive((40, 56, 40), (3, 3, 3), epochs, iterations=7)
    of_iterations = [schedule.stage_of_iteration(n) for n in range(7 * epochs)]
    assert of_iterations == [schedule.stage_of_epoch(n // 7) for n in range(7 * epochs)]
    assert schedule.stage_of_iteration(7 * epochs + 5) == of_iterations[-1], "prefetched"


def draws(seed, iterations):
    stages = tuple(stages_of((128,) * 3, (5, 5, 5), 2, "random"))
    schedule = Schedule(stages, 1000, 250, seed)
    return stages, [schedule.stage_of_iteration(n) for n in iterations]


def test_random_draws_depend_on_seed_and_iteration_alone():
    _, forwards = draws(7, range(200))
    _, backwards = draws(7, reversed(range(200)))
    assert forwards == backwards[::-1]
    assert forwards != draws(8, range(200))[1]


def test_random_draws_stay_what_they_were():
    """A training resumed under a later version must continue its own sequence."""
    assert draws(12345, range(16))[1] == [1, 1, 5, 4, 8, 4, 5, 1, 7, 1, 4, 1, 1, 7, 2, 4]


def test_random_draws_are_uniform():
    stages, drawn = draws(12345, range(10_000))
    counts = Counter(drawn)
    expected = 10_000 / len(stages)
    chi_squared = sum((counts[k] - expected) ** 2 / expected for k in range(len(stages)))
    assert chi_squared < 20.09, "the 99 % quantile of χ² with 8 degrees of freedom"
    pairs = Counter(zip(drawn[::2], drawn[1::2], strict=True))
    expected = 5000 / len(stages) ** 2
    of_pairs = sum((pairs[i, j] - expected) ** 2 / expected for i in range(9) for j in range(9))
    assert of_pairs < 112.3, "the 99 % quantile with 80 degrees: neighbours are independent"


def test_voxel_fraction_of_the_random_arm():
    stages, drawn = draws(12345, range(10_000))
    fraction = sum(stages[k].voxels for k in drawn) / (10_000 * stages[-1].voxels)
    assert fraction == pytest.approx(0.3802, abs=0.01)


def test_an_epoch_of_random_sizes_has_no_stage():
    stages = tuple(stages_of((16, 8, 8), (2, 2, 2), 2, "random"))
    assert Schedule(stages, 10, 5, seed=1).stage_of_epoch(3) is None
    assert Schedule(stages[-1:], 10, 5, seed=1).stage_of_epoch(3) == 0
