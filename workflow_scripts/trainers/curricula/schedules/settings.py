"""Parameters of an arm's trainer, each with its type, range, default and meaning.

This is their only home. The trainers' attributes (`attributes_of`), the configuration's schema and
its page are made from these classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import (
    Annotated,
    Any,
    Literal,
    Self,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

AUTHORS_PLUS_SEED = 2
"""The literal in the authors' `nnUNetTrainer_PGPS+.py` (line 48)."""

FIDELITY = "fidelity"
"""Marks a parameter that reproduces a choice of the authors; a study rarely needs it."""

CLOSED = {"extra": "forbid", "use_attribute_docstrings": True}
"""How pydantic makes a schema from a class: no other keys, and the docstrings are descriptions."""


class Keywords:
    """Keywords of JSON schema that Python's types cannot express, as metadata of a type."""

    def __init__(self, **keywords: Any) -> None:
        """Keep the keywords, such as `pattern` or `uniqueItems`."""
        self._keywords = keywords

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """Add the keywords to the schema that pydantic makes."""
        return {**handler(schema), **self._keywords}


class As:
    """A type whose schema describes a value of another type, as metadata of that type."""

    def __init__(self, kind: Any) -> None:
        """Keep the describing type."""
        self._kind = kind

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Let pydantic take the schema of the describing type."""
        return handler.generate_schema(self._kind)


Share = Annotated[float, Keywords(minimum=0, maximum=1)]
ScaleFactor = Annotated[float, Keywords(exclusiveMinimum=0, maximum=1)]
Fraction = Annotated[
    Annotated[float, Keywords(exclusiveMinimum=0, maximum=1)]
    | Annotated[str, Keywords(pattern="^[0-9]+/[1-9][0-9]*$")],
    Keywords(description="Share of the frequencies."),
]
"""Share of the frequencies, as a number or as `"3/7"`."""
Trainer = TypeVar("Trainer", bound=type)


@dataclass(frozen=True)
class TrainerSettings:
    """Related attributes of a trainer; each field has the attribute's name."""

    __pydantic_config__ = CLOSED

    def __post_init__(self) -> None:
        """Raise ValueError for a value that is not among those that its field lists."""
        for name, known in self._choices().items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"unknown {name} {value!r}; known are {', '.join(known)}")

    @classmethod
    @cache
    def _choices(cls) -> dict[str, tuple[str, ...]]:
        """Return the listed values of each field that has them."""
        hints = get_type_hints(cls)
        return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}

    @classmethod
    def of(cls, trainer: object, parameters: Mapping[str, Any] | None = None) -> Self:
        """Return the settings of a trainer or its class, overridden by an arm's parameters.

        nnU-Net's own trainers lack the attributes, so the defaults apply.
        """
        names = [field.name for field in fields(cls)]
        found = {name: getattr(trainer, name) for name in names if hasattr(trainer, name)}
        return cls(
            **found | {name: value for name, value in (parameters or {}).items() if name in names}
        )


def attributes_of(*settings: type[TrainerSettings]) -> Callable[[Trainer], Trainer]:
    """Give a trainer class the fields of settings as attributes, with their defaults."""

    def decorate(trainer: Trainer) -> Trainer:
        for field in (field for kind in settings for field in fields(kind)):
            if field.name not in vars(trainer):
                setattr(trainer, field.name, field.default)
        return trainer

    return decorate


@dataclass(frozen=True)
class ListedStage:
    """One stage; `epochs` of all stages add up to `training.epochs`."""

    __pydantic_config__ = CLOSED

    patch_size: Annotated[
        list[Annotated[int, Keywords(minimum=1)]], Keywords(minItems=2, maxItems=3)
    ]
    """Patch size in voxels, in the order of the preprocessed array's axes; two numbers in 2D."""
    batch_size: Annotated[int, Keywords(minimum=1)]
    """Patches per batch."""
    epochs: Annotated[int, Keywords(minimum=1)]
    """Epochs of this stage."""


@dataclass(frozen=True)
class GrowthSettings(TrainerSettings):
    """Attributes of a trainer that determine its sequence of patch sizes."""

    curriculum: str = "constant"
    """Name in `schedule.CURRICULA` or `frequency_stages.LOW_FREQUENCY`, or `listed` for the stages
    of `stage_list`. The trainer's class fixes it."""
    pacing: Annotated[Literal["equal", "volume"], FIDELITY] = "equal"
    """How a curriculum shares the epochs among its stages: `equal`, or in proportion to the patch
    `volume`."""
    stage_list: (
        Annotated[Sequence[Mapping[str, Any]], As(list[ListedStage]), Keywords(minItems=1)] | None
    ) = None
    """Your own stages for `nnUNetTrainerListedPatch`, in the order of training."""
    plus_seed: Annotated[Annotated[int, Keywords(minimum=1)] | None, FIDELITY] = AUTHORS_PLUS_SEED
    """Batch at the planned patch that `progressive_plus` counts backwards from (1 if the planned
    batch is 1). The default is the authors'; `null` is the planned batch, which is the maximum."""
    max_batch: Annotated[int, Keywords(minimum=1)] | None = None
    """Largest batch of the small patches (`progressive_plus`, `progressive_performance`,
    `large_batches_early`); `null` is no limit in 3D and 1024 in 2D. The planned batch is never
    reduced."""
    one_voxel_bottleneck: Annotated[bool, FIDELITY] = True
    """`false` leaves out the journal's smallest patch, at which the network's bottleneck is a
    single voxel."""


@dataclass(frozen=True)
class FrequencySettings(TrainerSettings):
    """Attributes of the low-frequency trainers that determine their stages."""

    lowpass: Literal["fft", "dct", "resize", "none"] = "fft"
    """How the low-frequency arms crop frequencies: in the spectrum (`fft`), in that of the cosine
    transform, which does not wrap around (`dct`), or by antialiased resampling (`resize`). `none`
    keeps all frequencies, so that only the augmentation grows."""
    augmentation_ramp: bool = True
    """`false` augments all stages of the low-frequency arms at full strength, so that only the
    frequencies grow."""
    frequency_schedule: Annotated[Literal["resnet", "swin", "deit", "convnext"], FIDELITY] = (
        "resnet"
    )
    """The schedule of kept frequencies for the low-frequency arms, named after the network that the
    authors of EfficientTrain++ used it for: `resnet` (of 224: 96 in two stages, 160 in four, 224 in
    four), `swin` (the same; replay in the first two only), `deit` (96 × 2, 160 × 4, 192 × 2, 224 ×
    2), `convnext` (160 × 6, 224 × 4; no replay)."""
    frequency_fractions: Annotated[Sequence[Fraction], Keywords(minItems=1)] | None = None
    """Your own list of the shares of the frequencies that the stages keep, above 0 and at most 1,
    as numbers or as `"3/7"`. The stages are of equal length, and the last one keeps all (1).
    `snakemake search_curriculum` finds such a list."""
    large_batches_early: Annotated[bool, FIDELITY] = False
    """`true` enlarges the batches of the low-frequency stages until they hold as many voxels as the
    planned batch (at most `max_batch`). The learning rate stays the same."""
    replay: Annotated[Literal["whole", "mixed"], FIDELITY] = "whole"
    """How `nnUNetTrainerLowFrequency` repeats samples: `whole` repeats entire batches in some
    iterations; `mixed`, the authors' way, repeats part of every batch."""
    replay_batches: Annotated[int, Keywords(minimum=0)] = 64
    """Batches that `nnUNetTrainerLowFrequency` keeps and repeats while it sees few frequencies; 0
    loads a new one each time."""


@dataclass(frozen=True)
class CurriculumSettings(FrequencySettings, GrowthSettings):
    """Attributes of a trainer that determine its schedule."""


@dataclass(frozen=True)
class BatchSettings(TrainerSettings):
    """Attributes of a trainer that determine what its batches contain, given the schedule."""

    training_oversample_foreground_percent: Annotated[Share | None, FIDELITY] = None
    """Share of a training batch's patches that are forced to contain foreground. `null` is
    nnU-Net's 0.33; `progressive`, `progressive_plus` and `random` have the authors' 0.5."""
    validation_oversample_foreground_percent: Annotated[Share | None, FIDELITY] = None
    """The same share for the validation (pseudo Dice) after each epoch. `null` is nnU-Net's 0.33;
    the authors of the patch curricula use 0.5."""
    faithful_augmentation_per_stage: Annotated[bool, FIDELITY] = False
    """`true` decides the kind of augmentation (rotation range, dummy 2D, mirror axes) separately
    for each patch size, as the authors' trainers do; `false` keeps that of the planned patch."""
    batched_augmentation: bool = True
    """`true` augments all samples of a batch together if the patches are smaller than the planned
    one, which is many times faster; `false` augments them one by one, as nnU-Net does. The
    distribution of the results is the same."""
    batched_planned_patch: bool = False
    """`true` augments batches of the planned patch together as well, as
    `nnUNetTrainerBatchedAugmentation` does, up to 16,384 voxels: larger ones are faster one by one.
    With `false`, what `constant` sees is nnU-Net's own augmentation to the bit."""
    augment_on_device: bool = False
    """`true` augments those batches on the GPU, for machines with few cores per GPU; `false` leaves
    it to the processes that load them. The added noise then comes from another random
    generator."""
    mirror_axes: Literal["all", "none"] = "all"
    """`none` trains without mirroring, and then the final validation does not mirror either; `all`
    is nnU-Net's augmentation."""


@dataclass(frozen=True)
class LowpassSettings(TrainerSettings):
    """Attributes of the low-frequency trainers that determine what their batches contain."""

    half_voxel_shift: Annotated[bool, FIDELITY] = True
    """`false` samples the low-passed patch aligned at the corner, as the authors of EfficientTrain
    do, not at the positions of the labels."""


@dataclass(frozen=True)
class OptimizerSettings(TrainerSettings):
    """Attributes of a trainer that determine its optimiser."""

    optimizer_name: Literal["sgd", "adamw"] = "sgd"
    """nnU-Net's optimiser of that name: `sgd` (its default, first learning rate 0.01) or `adamw`
    (0.001). It may be set for every arm of this workflow's trainers."""
    initial_lr: Annotated[float, Keywords(exclusiveMinimum=0)] | None = None
    """Learning rate of the first epoch (polynomial decay over the whole run); `null` is that of
    `optimizer_name`."""
    weight_decay: Annotated[float, Keywords(minimum=0)] = 3e-5
    """Weight decay of the optimiser. The default is nnU-Net's."""


@dataclass(frozen=True)
class TrainingLength:
    """Length of a whole training.

    Attributes:
        epochs: number of epochs.
        iterations_per_epoch: training steps per epoch.
        seed: seed of drawn sizes (`random`); other curricula ignore it.
    """

    epochs: int
    iterations_per_epoch: int
    seed: int | None = None
