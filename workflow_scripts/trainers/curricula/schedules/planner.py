"""The schedule of a whole training, derived from an arm's settings and a plan.

Both the trainers and the forecast use it, so the two cannot disagree. Pure Python.
"""

from collections import Counter

from .custom_stages import listed_stages
from .frequency_stages import LOW_FREQUENCY, plan_bands, spread
from .patch_plan import PatchPlan
from .schedule import DRAWN, Schedule, pace, plan_stages
from .settings import CurriculumSettings, TrainingLength

COUNTED_DRAWS = 10_000


def plan_schedule(
    plan: PatchPlan, length: TrainingLength, settings: CurriculumSettings
) -> Schedule:
    """Return the schedule of a training of this length.

    Raises ValueError for settings that conflict with each other or with the plan.
    """
    curriculum, epochs = settings.curriculum, length.epochs
    if curriculum == "listed":
        stages, each = listed_stages(plan, settings.stage_list or [], epochs)
    elif curriculum in LOW_FREQUENCY:
        replay = LOW_FREQUENCY[curriculum] and settings.replay_batches > 0
        stages = plan_bands(plan, settings, replay=replay)
        each = spread(len(stages), epochs)
    else:
        stages = plan_stages(plan, settings)
        each = pace(stages, epochs, settings.pacing)
    return Schedule(
        tuple(stages),
        epochs,
        length.iterations_per_epoch,
        length.seed if curriculum in DRAWN else None,
        each,
        equal_compute=LOW_FREQUENCY.get(curriculum, False),
    )


def iterations_of_stages(schedule: Schedule) -> list[float]:
    """Return the training iterations of each stage over the whole training.

    For a random schedule, the first 10,000 draws represent all: the mean size of a batch is then
    within about 1 % of that of all draws.
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
