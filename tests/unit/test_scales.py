"""Scale factors of a training: pure functions of (seed, iteration)."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.curricula.scales import plan_scales


def test_draws_are_uniform_within_the_bounds():
    scales = plan_scales(None, 0.25, 0.5)
    assert (scales.trained[0], scales.trained[-1], len(scales.trained)) == (0.25, 0.5, 26)
    drawn = Counter(scales.of_iteration(7, iteration) for iteration in range(13_000))
    assert set(drawn) == set(scales.trained)
    chi_square = sum((count - 500) ** 2 / 500 for count in drawn.values())
    assert chi_square < 60, "25 degrees of freedom: more than 60 once in 10,000 seeds"


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 10**6))
def test_a_draw_depends_on_seed_and_iteration_alone(seed, iteration):
    one, other = plan_scales(None, 0.25, 0.5), plan_scales(None, 0.25, 0.5)
    assert one.of_iteration(seed, iteration) == other.of_iteration(seed, iteration)
    assert 0.25 <= one.of_iteration(seed, iteration) <= 0.5


def test_seeds_and_iterations_differ():
    scales = plan_scales(None, 0.25, 0.5)
    sequences = {tuple(scales.of_iteration(seed, i) for i in range(20)) for seed in range(20)}
    assert len(sequences) == 20
    assert len({scales.of_iteration(1, i) for i in range(50)}) > 10


def test_validation_takes_turns_and_the_final_one_has_the_largest():
    scales = plan_scales(None, 0.25, 0.5)
    assert [scales.of_validation(i) for i in range(4)] == [0.5, 0.38, 0.25, 0.5]
    assert scales.final == 0.5


def test_a_fixed_scale_is_the_only_one():
    scales = plan_scales(0.35, 0.25, 0.5)
    assert {scales.of_iteration(3, i) for i in range(9)} == {0.35}
    assert (scales.validated, scales.final) == ((0.35,), 0.35)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0, 0.25, 0.5), "scale_factor 0 is not above 0"),
        ((None, 0.5, 0.25), "smallest_scale 0.5 is not smaller than largest_scale 0.25"),
        ((None, 0.3, 0.3), "is not smaller than largest_scale 0.3"),
        ((None, 0.25, 1.5), "largest_scale 1.5 is not above 0 and at most 1"),
    ],
)
def test_scales_that_cannot_be_are_named(arguments, said):
    with pytest.raises(ValueError, match=said):
        plan_scales(*arguments)
