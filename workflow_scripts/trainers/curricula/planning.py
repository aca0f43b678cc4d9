"""From an arm's settings and a plan to the schedule of the whole training: one way for all.

The trainers train by it and the forecast counts by it, so the two cannot disagree. Pure Python.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from .bands import LOW_FREQUENCY, plan_bands, spread
from .listed import listed_stages
from .schedules import Schedule, pace, plan_stages

SCHEDULE_ATTRIBUTES = (
    "curriculum",
    "pacing",
    "stage_list",
    "plus_seed",
    "max_batch",
    "one_voxel_bottleneck",
    "replay_batches",
)
"""Attributes of a trainer that decide its schedule: the last parameters of `plan_schedule`."""

COUNTED_DRAWS = 10_000


def plan_schedule(
    patch_size: Sequence[int],
    pooling: Sequence[int],
    batch_size: int,
    epochs: int,
    iterations_per_epoch: int,
    seed: int | None,
    *,
    curriculum: str = "constant",
    pacing: str = "equal",
    stage_list: Sequence[Mapping] | None = None,
    plus_seed: int | None = None,
    max_batch: int | None = None,
    one_voxel_bottleneck: bool = True,
    replay_batches: int = 64,
) -> Schedule:
    """Return the schedule of a training.

    Args:
        patch_size, pooling, batch_size: of the plan, as `schedules.plan_stages` takes them.
        epochs, iterations_per_epoch: length of the whole training.
        seed: of the draws of `random`; other curricula ignore it.
        curriculum: name in `schedules.CURRICULA` or `bands.LOW_FREQUENCY`, or `listed` for the
            stages of `stage_list`.
        pacing: how epochs are shared among the stages, one of `schedules.PACINGS`.
        stage_list: the user's own stages, as `listed.listed_stages` takes them.
        plus_seed, max_batch, one_voxel_bottleneck: see `schedules.plan_stages`.
        replay_batches: the batches that `low_frequency` keeps for repetition; 0 repeats none.

    Raises ValueError for settings that do not fit each other or the plan.
    """
    if curriculum == "listed":
        stages, each = listed_stages(stage_list or [], pooling, epochs)
    elif curriculum in LOW_FREQUENCY:
        replay = LOW_FREQUENCY[curriculum] and replay_batches > 0
        stages = plan_bands(patch_size, pooling, batch_size, replay=replay)
        each = spread(len(stages), epochs)
    else:
        stages = plan_stages(
            patch_size,
            pooling,
            batch_size,
            curriculum,
            plus_seed=plus_seed,
            max_batch=max_batch,
            one_voxel_bottleneck=one_voxel_bottleneck,
        )
        each = pace(stages, epochs, pacing)
    drawn = seed if curriculum == "random" else None
    return Schedule(
        tuple(stages),
        epochs,
        iterations_per_epoch,
        drawn,
        each,
        equal_compute=LOW_FREQUENCY.get(curriculum, False),
    )


def iterations_of_stages(schedule: Schedule) -> list[float]:
    """Return the training iterations of each stage over the whole training.

    Of a random schedule the first 10,000 draws stand for all: the mean size of a batch is then
    within about 1 % of that of the draws themselves.
    """
    if schedule.seed is None:
        counted = [0.0] * len(schedule.stages)
        for epoch in range(schedule.epochs):
            stage = schedule.stage_of_iteration(schedule.iterations_before(epoch))
            counted[stage] += schedule.iterations_of_epoch(epoch)
        return counted
    iterations = schedule.epochs * schedule.iterations_per_epoch
    draws = min(iterations, COUNTED_DRAWS)
    drawn = Counter(schedule.stage_of_iteration(draw) for draw in range(draws))
    return [drawn[stage] * iterations / draws for stage in range(len(schedule.stages))]
