"""Scale factors of a training: pure functions of (seed, iteration)."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow_scripts.trainers.curricula.schedules.scale_factors import ScaleSpaceSettings


def test_draws_are_uniform_within_the_bounds():
    scales = ScaleSpaceSettings().scales
    assert (scales.trained[0], scales.trained[-1], len(scales.trained)) == (0.25, 0.5, 26)
    drawn = Counter(scales.of_iteration(7, iteration) for iteration in range(13_000))
    assert set(drawn) == set(scales.trained)
    chi_square = sum((count - 500) ** 2 / 500 for count in drawn.values())
    assert chi_square < 60, "25 degrees of freedom: more than 60 once in 10,000 seeds"


@given(st.integers(0, 2**32 - 1), st.integers(0, 10**6))
def test_a_draw_depends_on_seed_and_iteration_alone(seed, iteration):
    one, other = ScaleSpaceSettings().scales, ScaleSpaceSettings().scales
    assert one.of_iteration(seed, iteration) == other.of_iteration(seed, iteration)
    assert 0.25 <= one.of_iteration(seed, iteration) <= 0.5


def test_the_square_root_prior_draws_areas_uniformly():
    scales = ScaleSpaceSettings(scale_prior="sqrt").scales
    assert (scales.final, scales.validated) == (0.5, (0.5, 0.38, 0.25))
    drawn = [scales.of_iteration(3, iteration) for iteration in range(20_000)]
    assert set(drawn) == set(ScaleSpaceSettings().scales.trained), "the same factors"
    areas = [(scale**2 - 0.25**2) / (0.5**2 - 0.25**2) for scale in drawn]
    for quarter in range(4):
        inside = sum(quarter / 4 <= area < (quarter + 1) / 4 for area in areas)
        assert 0.2 < inside / len(areas) < 0.3, quarter
    assert sum(areas) / len(areas) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale_prior": "normal"}, "known are uniform, sqrt"),
        ({"film": True}, "requires rank 0, not 8"),
    ],
)
def test_options_that_do_not_go_together_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ScaleSpaceSettings(**options)


def test_seeds_and_iterations_differ():
    scales = ScaleSpaceSettings().scales
    sequences = {tuple(scales.of_iteration(seed, i) for i in range(20)) for seed in range(20)}
    assert len(sequences) == 20
    assert len({scales.of_iteration(1, i) for i in range(50)}) > 10


def test_validation_takes_turns_and_the_final_one_has_the_largest():
    scales = ScaleSpaceSettings().scales
    assert [scales.of_validation(i) for i in range(4)] == [0.5, 0.38, 0.25, 0.5]
    assert scales.final == 0.5


def test_a_fixed_scale_is_the_only_one():
    scales = ScaleSpaceSettings(0.35).scales
    assert {scales.of_iteration(3, i) for i in range(9)} == {0.35}
    assert (scales.validated, scales.final) == ((0.35,), 0.35)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0, 0.25, 0.5), "scale_factor 0 is not above 0"),
        ((None, 0.5, 0.25), "smallest_scale 0.5 must be at least 0.01 below largest_scale 0.25"),
        ((None, 0.3, 0.3), "must be at least 0.01 below largest_scale 0.3"),
        ((None, 0.25, 1.5), "largest_scale 1.5 is not above 0 and at most 1"),
        ((None, 0.25, 0.5, -1), "a rank of -1 is negative"),
        ((None, 0.25, 0.5, 1), "rank 1 with unit_norm"),
        ((None, 0.25, 0.5, 8, True, "log"), "unknown scale_encoding 'log'; known are linear"),
    ],
)
def test_settings_that_cannot_be_are_named(arguments, said):
    with pytest.raises(ValueError, match=said):
        ScaleSpaceSettings(*arguments)
