"""Patch-size schedules as pure functions of the plan: no torch, no nnU-Net, no hidden state.

The trainers, the forecast, the figures and the tests all use this module, so a schedule is defined
once. Sources: Fischer et al., "Progressive Growing of Patch Size", MICCAI 2024, section 2, and its
reference implementation (`nnUNetTrainer_PGPS.py`, `_PGPS+.py`, `_RPSS.py`) for `progressive`,
`progressive_plus` and `random`; arXiv 2510.23241 and its trainers for `progressive_efficiency` and
`progressive_performance`.
"""

import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from math import prod
from operator import mul
from typing import Literal

from .patch_growth import grow_in_turn, grow_shortest, plus_batches
from .patch_plan import PatchPlan
from .settings import AUTHORS_PLUS_SEED, CurriculumSettings

CURRICULA = (
    "constant",
    "progressive",
    "random",
    "progressive_plus",
    "progressive_efficiency",
    "progressive_performance",
)
DRAWN = ("random",)
"""Curricula that draw the stage of each iteration instead of going through the stages in turn."""


@dataclass(frozen=True)
class Stage:
    """A stage of the schedule: patch and batch size of its training batches.

    Attributes:
        patch_size: voxels per axis that the network sees, in nnU-Net's axis order.
        batch_size: samples.
        field_of_view: voxels per axis that are cropped from the image and then reduced to
            `patch_size` by a low-pass; None if nothing is reduced.
        augmentation: strength of the augmentation, from 0 (none) to 1 (nnU-Net's own).
        replay: iterations per loaded batch; the other iterations repeat earlier batches.
    """

    patch_size: tuple[int, ...]
    batch_size: int
    field_of_view: tuple[int, ...] | None = None
    augmentation: float = 1.0
    replay: int = 1

    @property
    def loaded_size(self) -> tuple[int, ...]:
        """Voxels per axis of a patch as it is cropped from the image and augmented."""
        return self.field_of_view or self.patch_size

    @property
    def voxels(self) -> int:
        """Input voxels of one batch."""
        return self.batch_size * prod(self.patch_size)

    @property
    def label(self) -> str:
        """The patch size as written in tables, such as `40x56x40`."""
        return "x".join(map(str, self.patch_size))


def plan_stages(plan: PatchPlan, settings: CurriculumSettings) -> list[Stage]:
    """Return the distinct training sizes of a curriculum, smallest first; the last is the plan's.

    `constant` has only the plan's size; `random` draws from the sizes of `progressive`.

    Raises ValueError for an unknown curriculum, or a `plus_seed` that is too large.
    """
    curriculum, planned, batch = settings.curriculum, plan.patch_size, plan.batch_size
    if curriculum not in CURRICULA:
        raise ValueError(f"unknown curriculum {curriculum!r}; known are {', '.join(CURRICULA)}")
    seed = settings.plus_seed or batch
    if seed > max(batch, AUTHORS_PLUS_SEED):
        raise ValueError(f"plus_seed {seed} is larger than the planned batch of {batch}")
    if curriculum == "constant":
        sizes = [planned]
    elif curriculum in ("progressive_efficiency", "progressive_performance"):
        sizes = grow_shortest(plan, settings.one_voxel_bottleneck)
    else:
        sizes = grow_in_turn(plan)
    batches = [batch] * len(sizes)
    if curriculum == "progressive_plus":
        batches = plus_batches(sizes, batch, min(seed, batch))
    elif curriculum == "progressive_performance":
        batches = [batch * prod(planned) // prod(size) for size in sizes]
    batches = [plan.limited(wanted, settings.max_batch) for wanted in batches]
    return [Stage(size, count) for size, count in zip(sizes, batches, strict=True)]


def stage_at(epoch: int, epochs: int, number_of_stages: int) -> int:
    """Return the stage of an epoch: equal epochs per stage, the remainder in the last one.

    With fewer epochs than stages, the stages are spread evenly, and the last epoch is always at the
    planned size.

    Raises ValueError for an epoch outside 0..epochs-1, or fewer than one stage.
    """
    if not 0 <= epoch < epochs:
        raise ValueError(f"epoch {epoch} is outside a training of {epochs} epochs")
    if number_of_stages < 1:
        raise ValueError(f"a schedule needs at least one stage, got {number_of_stages}")
    last = number_of_stages - 1
    if epochs >= number_of_stages:
        return min(last, epoch // (epochs // number_of_stages))
    if epochs == 1:
        return last
    return round(epoch * last / (epochs - 1))


def pace(
    stages: Sequence[Stage], epochs: int, pacing: Literal["equal", "volume"]
) -> tuple[int, ...]:
    """Return the epochs of each stage: `equal` (`stage_at`), or in proportion to the `volume`.

    By volume, every stage has at least one epoch, and the quotas are rounded by largest remainder
    (the pacing of the authors' later trainers). With fewer epochs than stages, both are `equal`.
    """
    if pacing == "equal" or epochs < len(stages):
        counts = Counter(stage_at(epoch, epochs, len(stages)) for epoch in range(epochs))
        return tuple(counts[number] for number in range(len(stages)))
    volumes = [prod(stage.patch_size) for stage in stages]
    quotas = [epochs * volume / sum(volumes) for volume in volumes]
    each = [max(1, int(quota)) for quota in quotas]
    numbers = range(len(stages))
    while sum(each) != epochs:
        if sum(each) < epochs:
            each[max(numbers, key=lambda n: (quotas[n] - each[n], n))] += 1
        else:
            shortenable = [n for n in numbers if each[n] > 1]
            each[min(shortenable, key=lambda n: (quotas[n] - each[n], n))] -= 1
    return tuple(each)


@dataclass(frozen=True)
class Schedule:
    """Stage of every batch of a training: a pure function of the batch's number.

    Attributes:
        stages: the training sizes in the order of training.
        epochs, iterations_per_epoch: length of the whole training.
        seed: seed of the random draws; None grows the size with the epochs instead.
        epochs_of_stages: epochs of each stage; None means equal pacing.
        equal_compute: epochs of stages with fewer voxels have more iterations, so that every epoch
            has equal computation; `iterations_per_epoch` is that of the last stage.
    """

    stages: tuple[Stage, ...]
    epochs: int
    iterations_per_epoch: int
    seed: int | None = None
    epochs_of_stages: tuple[int, ...] | None = None
    equal_compute: bool = False

    @cached_property
    def _ends(self) -> list[int]:
        each = self.epochs_of_stages or pace(self.stages, self.epochs, "equal")
        if sum(each) != self.epochs or len(each) != len(self.stages):
            raise ValueError(
                f"epochs of the stages {each}: not {len(self.stages)} that add up to {self.epochs}"
            )
        return list(accumulate(each))

    @cached_property
    def _iterations_per_epoch(self) -> list[int]:
        """Iterations of an epoch of each stage, rounded half up."""
        if not self.equal_compute:
            return [self.iterations_per_epoch] * len(self.stages)
        whole = 2 * self.iterations_per_epoch * self.stages[-1].voxels
        return [(whole // stage.voxels + 1) // 2 for stage in self.stages]

    @cached_property
    def _iteration_ends(self) -> list[int]:
        epochs = [end - start for start, end in pairwise([0, *self._ends])]
        return list(accumulate(map(mul, epochs, self._iterations_per_epoch)))

    @cached_property
    def _batch_ends(self) -> list[int]:
        """Loaded batches at the end of each stage; every stage starts by loading one."""
        iterations = [end - start for start, end in pairwise([0, *self._iteration_ends])]
        replays = [stage.replay for stage in self.stages]
        return list(accumulate(-(-n // r) for n, r in zip(iterations, replays, strict=True)))

    def stage_of_epoch(self, epoch: int) -> int | None:
        """Return the epoch's stage, or None if its batches differ.

        Raises ValueError for an epoch outside the training.
        """
        if not 0 <= epoch < self.epochs:
            raise ValueError(f"epoch {epoch} is outside a training of {self.epochs} epochs")
        if self.seed is None:
            return bisect_right(self._ends, epoch)
        return None if len(self.stages) > 1 else 0

    def iterations_of_epoch(self, epoch: int) -> int:
        """Return the training iterations of an epoch (0 .. epochs - 1)."""
        stage = self.stage_of_epoch(epoch)
        return self.iterations_per_epoch if stage is None else self._iterations_per_epoch[stage]

    def iterations_before(self, epoch: int) -> int:
        """Return the global number of the first iteration of an epoch (0 .. epochs)."""
        if self.seed is not None:
            return epoch * self.iterations_per_epoch
        stage = self._clipped(bisect_right(self._ends, epoch))
        first = [0, *self._ends][stage], [0, *self._iteration_ends][stage]
        return first[1] + (epoch - first[0]) * self._iterations_per_epoch[stage]

    def stage_of_iteration(self, iteration: int) -> int:
        """Return the stage of a global iteration, counted from 0.

        Random draws are uniform over the stages and depend on (seed, iteration) alone, so a resumed
        training continues the same sequence. Batches past the end are like those of the last epoch.
        """
        if self.seed is None:
            return self._clipped(bisect_right(self._iteration_ends, iteration))
        return random.Random(f"{self.seed}/{iteration}").randrange(len(self.stages))

    def stage_of_batch(self, number: int) -> int:
        """Return the stage of loaded batch `number`, counted from 0.

        Without replay, `number` is also the batch's iteration. Workers prefetch past the end; their
        surplus batches are like those of the last epoch and are never trained on.
        """
        if self.seed is None:
            return self._clipped(bisect_right(self._batch_ends, number))
        return self.stage_of_iteration(number)

    def batches_before(self, iteration: int) -> int:
        """Return how many batches the iterations before this one have loaded."""
        if self.seed is not None:
            return iteration
        stage = self.stage_of_iteration(iteration)
        within = self.iteration_of_stage(iteration)
        return [0, *self._batch_ends][stage] - (-within // self.stages[stage].replay)

    def loads(self, iteration: int) -> bool:
        """Return whether an iteration loads a batch; otherwise it repeats one of its stage."""
        return self.batches_before(iteration + 1) > self.batches_before(iteration)

    def replayable_before(self, iteration: int) -> int:
        """Return how many batches of this iteration's stage were loaded before it."""
        if self.seed is not None:
            return 0
        first = [0, *self._batch_ends][self.stage_of_iteration(iteration)]
        return self.batches_before(iteration) - first

    def iteration_of_stage(self, iteration: int) -> int:
        """Return the number of an iteration within its stage, counted from 0.

        Raises ValueError if sizes are drawn, since the stages are then not consecutive.
        """
        if self.seed is not None:
            raise ValueError("a random schedule has no consecutive stages")
        return iteration - [0, *self._iteration_ends][self.stage_of_iteration(iteration)]

    def _clipped(self, stage: int) -> int:
        """Return `stage`, or that of the last epoch if `stage` is past the end."""
        return min(stage, bisect_right(self._ends, self.epochs - 1))
