"""The configuration of a study: every key with its type, range, default and meaning.

This is their only home: `document_config` makes the schema and its page from these classes. The
sections that scripts read as typed settings are classes of theirs, named here.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from typing_extensions import TypedDict

from workflow_scripts.records.energy_settings import EnergySettings
from workflow_scripts.study.settings import TrainingSettings
from workflow_scripts.study.specification import Arm
from workflow_scripts.trainers.curricula.schedules.settings import (
    CLOSED,
    Fraction,
    Keywords,
    ScaleFactor,
)

ShippedTask = Literal[
    "Task01_BrainTumour",
    "Task02_Heart",
    "Task03_Liver",
    "Task04_Hippocampus",
    "Task05_Prostate",
    "Task06_Lung",
    "Task07_Pancreas",
    "Task08_HepaticVessel",
    "Task09_Spleen",
    "Task10_Colon",
    "Task99_BrainTissue",
]
"""A task of the Medical Segmentation Decathlon by its archive's name, or the small semi-synthetic
task that the workflow makes itself."""
OwnName = Annotated[str, Keywords(pattern="^Task[0-9]{3}_[A-Za-z0-9]+$")]
"""Name of an own task; nnU-Net's name of Task501_Mine is Dataset501_Mine."""
Task = ShippedTask | OwnName
Seed = Annotated[int, Keywords(minimum=0, maximum=2**32 - 1)]
Md5 = Annotated[
    str, Keywords(pattern="^[0-9a-f]{32}$", description="Lower-case md5 of the archive.")
]
Count = Annotated[int, Keywords(minimum=1)]


class Section:
    """A section of the configuration: a dataclass whose fields' docstrings describe its keys."""

    __pydantic_config__ = CLOSED


@dataclass(frozen=True)
class OwnTask(Section):
    """Where the dataset is, and what its files do not say."""

    folder: Annotated[str, Keywords(minLength=1)]
    """Folder in nnU-Net's raw format or in MSD's; it is only read. `~` is the home folder."""
    data_set: Literal["BTCV", "AMOS22", "KiTS23", "TotalSegmentatorV2", "ToothFairy2", None] = None
    """Which of the journal version's data sets this is, by its name in
    [journal_datasets.yaml](../../config/published/journal_datasets.yaml). Its import is checked
    against that file, and it counts towards the claims about fifteen data sets. `null` means
    any other data set."""
    groups: Annotated[str, Keywords(minLength=1)] | None = None
    """Table (CSV) with the columns `case` and `group`, for example the patient. Five folds are
    made that keep each group together. With `null`, folds come from a `splits_final.json` next
    to `dataset.json`, or else nnU-Net draws them over cases."""
    nsd_tolerance_mm: Annotated[float, Keywords(exclusiveMinimum=0)] | None = None
    """Tolerance of the normalised surface distance in mm, or in pixels for images without a spacing
    (`.png`, `.bmp`, 2D `.tif`); with `null` there is none."""


class Override(TypedDict, total=False):
    """Replaces the planner's choice; keys that are not set stay as planned."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]

    patch_size: Annotated[
        list[Annotated[int, Keywords(minimum=4)]], Keywords(minItems=2, maxItems=3)
    ]
    """Patch size in voxels, in the order of the preprocessed array's axes; two numbers in 2D."""
    batch_size: Count
    """Patches per batch. nnU-Net's own planner never goes below 2."""
    features_per_stage: Annotated[list[Count], Keywords(minItems=2)]
    """Feature maps per resolution stage, from the finest; as many as the network has stages."""


@dataclass(frozen=True)
class Planning(Section):
    """nnU-Net's experiment planning, and what replaces parts of it."""

    planner: Literal[
        "ExperimentPlanner", "nnUNetPlannerResEncM", "nnUNetPlannerResEncL", "nnUNetPlannerResEncXL"
    ] = "ExperimentPlanner"
    """Planner class of nnU-Net: for its plain U-Net, or for one with a residual encoder that fits
    8 (M), 24 (L) or 40 GB (XL) of GPU memory."""
    network: Literal["primus_s", "primus_b", "primus_m", "primus_l"] | None = None
    """nnU-Net's transformer Primus in one of its sizes, instead of the planner's U-Net (`null`), in
    3D. Patches are multiples of 8. It keeps its own optimiser, warm-up of 50 epochs and clipping,
    which an arm's `optimizer_name` cannot change. `scale_space` needs a U-Net."""
    gpu_memory_target_gb: Annotated[float, Keywords(exclusiveMinimum=0)] | None = None
    """GPU memory that is planned for, in GB. `null` is the planner's own target."""
    configuration: Literal["3d_fullres", "3d_lowres", "2d"] = "3d_fullres"
    """Configuration of the plans that is trained. nnU-Net plans `2d` for all data ([how
    to](../how-to/2d.md)), `3d_fullres` for 3D images, and `3d_lowres` for large ones. The cascade
    is not trained: its second network needs the predictions of all folds of the first."""
    overrides: dict[Literal["all"] | Task, Annotated[Override, Keywords(minProperties=1)]] = field(
        default_factory=dict
    )
    """Task, or `all`, → values that replace the planned ones; a task's own come before those of
    `all`."""


@dataclass(frozen=True)
class Validation(Section):
    """The final validation of a run, by sliding window over whole images."""

    mirroring: bool = True
    """Test-time augmentation by mirroring, nnU-Net's default (8 predictions per window in
    3D, 4 in 2D)."""


Margin = Annotated[float, Keywords(exclusiveMinimum=0, exclusiveMaximum=1)]


@dataclass(frozen=True)
class Comparison(Section):
    """What [the verdicts](../explanation/evidence.md#is-dice-kept) about the arms ask."""

    margin: Margin = 0.01
    """Loss of Dice against the reference arm that is accepted: Dice is *kept* if the whole interval
    of the difference lies above minus this margin."""
    task_margins: dict[Task, Margin] = field(default_factory=dict)
    """Task → its own margin. The margin of the mean over tasks is the mean of theirs."""
    cost: Literal["time", "energy", "flop"] = "time"
    """The cost by which arms are ordered and drawn; the others are stated beside it."""


@dataclass(frozen=True)
class ScaleSpaceTransfer(Section):
    """Dice of a hypernetwork's weights for one scale factor in another's network, for all pairs."""

    scales: Annotated[tuple[ScaleFactor, ...], Keywords(uniqueItems=True)] = (0.25, 0.35, 0.5)
    """Scale factors of weights and networks; `[]` leaves the table and its figure out."""
    cases: Count | None = 20
    """Validation cases of each fold on which every pair is evaluated, spread evenly; `null`
    means all."""


@dataclass(frozen=True)
class ScaleSpace(Section):
    """How `snakemake scale_space` evaluates networks that were trained for many scale factors."""

    scales: Annotated[tuple[ScaleFactor, ...], Keywords(minItems=1, uniqueItems=True)] = (
        0.25,
        0.3,
        0.35,
        0.4,
        0.45,
        0.5,
    )
    """Scale factors of the evaluation."""
    tolerance: Annotated[float, Keywords(minimum=0)] = 0.005
    """How much Dice a cheaper scale factor may lose against the best one and still be
    chosen."""
    transfer: ScaleSpaceTransfer = field(default_factory=ScaleSpaceTransfer)
    """Dice of a hypernetwork's weights for one scale factor in the network of another, for
    every pair of these."""


@dataclass(frozen=True)
class Search(Section):
    """How `snakemake search_curriculum` finds [a schedule](../how-to/search_schedule.md)."""

    trainer: Literal["nnUNetTrainerLowFrequency"] = "nnUNetTrainerLowFrequency"
    """Trainer of all trials; each of its epochs must take the same amount of computation."""
    parameters: dict[
        Literal[
            "lowpass",
            "half_voxel_shift",
            "replay_batches",
            "replay",
            "augmentation_ramp",
            "large_batches_early",
            "max_batch",
        ],
        str | float | bool | None,
    ] = field(default_factory=dict)
    """Attributes set on the trainer, as in `arms`, such as `lowpass`."""
    candidates: Annotated[tuple[Fraction, ...], Keywords(minItems=1, uniqueItems=True)] = (
        "3/7",
        "5/7",
    )
    """Shares of the frequencies that a part may keep, as numbers or as `"3/7"`. All of them (1)
    is always a candidate."""
    parts: Annotated[int, Keywords(minimum=2)] = 5
    """Parts of the schedule that are decided one after the other; the last one keeps all
    frequencies."""
    stages: Annotated[int, Keywords(minimum=2)] = 10
    """Stages of the schedule, over which the augmentation grows; a multiple of `parts`."""
    epochs: Count | None = None
    """Epochs of a trial; `null` is a tenth of `training.epochs`, and one at least for each
    stage."""
    fold: Annotated[int, Keywords(minimum=0)] = 0
    """Fold whose validation cases decide."""


@dataclass(frozen=True)
class Forecast(Section):
    """How `snakemake forecast` turns counted operations into hours and energy."""

    calibration: Literal["published", "measured"] = "published"
    """`published`: nnU-Net's published runs of the ten MSD tasks on one NVIDIA H100.
    `measured`: your own finished runs, of one machine."""
    runs: Annotated[
        tuple[Annotated[str, Keywords(minLength=1)], ...], Keywords(minItems=1, uniqueItems=True)
    ] = ("results/*/runs",)
    """Folders (patterns such as `results/hippocampus/runs/*/constant`) in which `measured`
    looks for finished runs."""


@dataclass(frozen=True)
class Budget(Section):
    """What all trainings of the study may cost according to the forecast.

    With a limit, no training starts before the forecast has been checked.
    """

    gpu_hours: Annotated[float, Keywords(minimum=0)] | None = None
    """Hours of all trainings, one device each; `null` is no limit."""
    kg_co2eq: Annotated[float, Keywords(minimum=0)] | None = None
    """Emissions of all trainings in kg CO2eq; `null` is no limit."""


@dataclass(frozen=True)
class Fit(Section):
    """What `snakemake fit` makes the trainings fit into by shortening them.

    [Fit a study into a budget](../how-to/fit.md) explains its table and its next step.
    """

    hours: Annotated[float, Keywords(exclusiveMinimum=0)] | None = None
    """Hours that may pass; `null` is no limit."""
    kwh: Annotated[float, Keywords(exclusiveMinimum=0)] | None = None
    """Energy in kWh; `null` is no limit."""
    kg_co2eq: Annotated[float, Keywords(exclusiveMinimum=0)] | None = None
    """Emissions in kg CO2eq; `null` is no limit."""
    gpus: Count = 1
    """Devices on which trainings run side by side."""
    per: Literal["study", "training"] = "study"
    """What must fit: all trainings together, whose lengths keep their ratios, or each training by
    itself, so that an arm with cheaper epochs gets more of them."""


@dataclass(frozen=True)
class Cluster(Section):
    """What jobs may request from a scheduler; ignored on one machine.

    Account and partition are in `profiles/slurm/config.yaml`, and [Run on a Slurm
    cluster](../how-to/slurm.md) explains both.
    """

    max_runtime_minutes: Count | None = None
    """Time limit of the partition: no job requests more, and a longer training is sliced. Every
    training then waits for the forecast, which determines its request. `null`: trainings
    request no time and get the partition's default."""
    forecast_margin: Annotated[float, Keywords(exclusiveMinimum=0)] = 1.5
    """Requested time divided by forecast time. Double it for a GPU half as fast as the
    calibration's."""
    max_memory_mb: Annotated[int, Keywords(minimum=1000)] | None = None
    """Memory of the largest machine, in MB; no job requests more. `null` is no limit."""


@dataclass(frozen=True)
class Bench(Section):
    """How `make bench` measures; studies ignore it."""

    repeats: Count = 3
    """Interleaved repeats, of which medians are reported."""
    peer: str | None = None
    """Name of someone else's trainer, measured with the schedule of `progressive`; nnU-Net
    finds it in the folder `nnUNet_extTrainer`."""
    iterations: Annotated[int, Keywords(minimum=2)] = 4
    """Training iterations at each stage of `progressive`."""
    loading_seconds: Annotated[float, Keywords(exclusiveMinimum=0)] = 4
    """Processor time for which the loading of a stage and that of `constant` are measured in
    turns; at least three batches of each."""
    loading_stages: Count = 5
    """Largest number of stages of an arm at which loading is measured."""


@dataclass(frozen=True)
class DemoTask(Section):
    """How the generated `Task99_BrainTissue` is made; other tasks ignore it."""

    cases: Annotated[int, Keywords(minimum=5)] = 20
    """Number of cases."""
    seed: Annotated[int, Keywords(minimum=0)] = 2024
    """Seed of deformations, contrasts and noise."""


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    """One study is tasks × arms × folds × seeds. Every key that is not listed here is refused."""

    study: Annotated[str, Keywords(pattern="^[a-z0-9][a-z0-9_-]*$")]
    """Name of the study; everything it makes is in `results/{study}/`."""
    tasks: Annotated[list[Task], Keywords(minItems=1, uniqueItems=True)]
    """Tasks of the study, by the names in `config/tables/datasets.tsv`, the generated
    `Task99_BrainTissue`, or a name of `own_tasks`."""
    folds: Annotated[
        list[Annotated[int, Keywords(minimum=0)]], Keywords(minItems=1, uniqueItems=True)
    ]
    """Cross-validation folds to train: nnU-Net's five (0 to 4), or those that come with an own
    task."""
    seeds: Annotated[list[Seed], Keywords(minItems=1, uniqueItems=True)] | None = None
    """Seeds with which every fold is trained; they must include `training.seed`. `null` means
    only that one. More seeds can be added to a finished study, whose trainings stay."""
    arms: Annotated[
        dict[Annotated[str, Keywords(pattern="^[a-z][a-z0-9_]*$")], Arm], Keywords(minProperties=1)
    ]
    """The compared trainings, by name (lower case letters, digits and underscores)."""
    reference_arm: str = "constant"
    """The arm that every comparison is relative to."""
    archives: Annotated[str, Keywords(minLength=1)] | None = None
    """Folder with `TaskNN_Name.tar` files that were downloaded already; what is not there is
    downloaded. `null` downloads all."""
    checksums: dict[ShippedTask, Md5] = field(default_factory=dict)
    """Task → md5 of an archive that is accepted in addition to the one in
    `config/tables/datasets.tsv`."""
    own_tasks: dict[OwnName, OwnTask] = field(default_factory=dict)
    """Your own datasets, by name: `Task` and three digits that no other task has, `_`, letters
    and digits. One becomes part of the study when `tasks` lists it: [Use your own
    dataset](../how-to/own_dataset.md)."""
    planning: Planning = field(default_factory=Planning)
    training: TrainingSettings
    validation: Validation = field(default_factory=Validation)
    comparison: Comparison = field(default_factory=Comparison)
    energy: EnergySettings = field(default_factory=EnergySettings)
    scale_factor: ScaleFactor | None = None
    """The scale factor for which `snakemake bake` makes a model. `null` selects the cheapest
    one within `scale_space.tolerance` of the best, by the evaluation on the validation
    folds."""
    scale_space: ScaleSpace = field(default_factory=ScaleSpace)
    search: Search = field(default_factory=Search)
    forecast: Forecast = field(default_factory=Forecast)
    budget: Budget = field(default_factory=Budget)
    fit: Fit = field(default_factory=Fit)
    cluster: Cluster = field(default_factory=Cluster)
    bench: Bench = field(default_factory=Bench)
    demo_task: DemoTask = field(default_factory=DemoTask)
