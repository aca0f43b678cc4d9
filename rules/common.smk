"""
Shared by all rules: the checked configuration, the study that it describes, and helpers.

REQUIRED INPUTS:

    config (from --configfile, from a module's `config:`, or config/studies/demo.yaml),
    config/schemas/config.schema.yaml, config/tables/datasets.tsv, config/tables/job_resources.tsv

OUTPUTS: none; there are no rules here
"""

import json
import re
import sys
from pathlib import Path

# Without links: a clone may be reached by several paths, as in many clusters' home folders.
BASE = Path(workflow.current_basedir).parent.resolve()
sys.path.insert(0, str(BASE))

from workflow_scripts.common.errors import ConfigError
from workflow_scripts.common.gpus import count_gpus
from workflow_scripts.common.nnunet_setup import PREPROCESSED, RAW
from workflow_scripts.study.config_validation import check_config
from workflow_scripts.study.curriculum_search import TRIAL
from workflow_scripts.study.data_changes import check_data
from workflow_scripts.study.job_resources import JobResources
from workflow_scripts.study.isolation import check_python, isolate
from workflow_scripts.study.script_inputs import imported_modules
from workflow_scripts.study.specification import Study, file_digests
from workflow_scripts.study.started_trainings import check_unchanged
from workflow_scripts.study.tasks import (
    DEMO_TASK,
    DEMO_TOLERANCE_MM,
    check_folds,
    check_own_tasks,
    not_converted,
    not_imported,
    read_register,
)


def shipped(path):
    """Return the path of a file of this workflow, from any working directory."""
    return path if BASE == Path.cwd() else str(BASE / path)


# Only without --configfile: Snakemake merges configurations key by key.
if not workflow.configfiles:

    configfile: shipped("config/studies/demo.yaml")


isolate()
try:
    check_python(sys.executable)
    check_config(config, BASE / "config/schemas/config.schema.yaml")
    check_own_tasks(config, RAW)
    check_folds(config, PREPROCESSED)
    if workflow.is_main_process:
        check_data(config["study"], config["tasks"])
except ConfigError as error:
    sys.exit(str(error))

MSD = read_register(BASE / "config/tables/datasets.tsv")
STUDY = Study(config, MSD)
JOBS = JobResources(
    STUDY, BASE / "config/tables/job_resources.tsv", BASE / "config/published/nnunet_plans.tsv"
)
# One job per GPU, unless `--resources gpu=…` sets another limit. Without GPUs, trainings run on the
# CPU and only the number of cores limits them.
GPUS = 0 if config["training"]["device"] == "cpu" else count_gpus()
if GPUS and "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", GPUS)

# Jobs whose energy meter reads the whole machine run one at a time, also if other resources are
# given on the command line, or in a workflow that uses this one as a module.
if "power_meter" not in workflow.global_resources:
    workflow.register_resource("power_meter", 1)

HAS_BUDGET = set(config["budget"].values()) != {None}
RESULTS = f"results/{STUDY.name}"
# The suffix is empty for `training.seed`, and for example `_seed_2` for another seed.
RUN = f"{RESULTS}/runs/{{task}}/{{arm}}/fold_{{fold}}{{seed_suffix}}"
RUN_OF_TRAINING_SEED = RUN.removesuffix("{seed_suffix}")

TABLES = expand(
    f"{RESULTS}/tables/{{table}}",
    table=[
        *(f"{name}.csv" for name in ("runs", "cases", "epochs", "stages", "energy")),
        *(f"{name}.{kind}" for name in ("comparison", "overview") for kind in ("csv", "md", "tex")),
        *("verdicts.csv", "verdicts.md", "ranks.csv", "ranks.md"),
        "class_balance.csv",
        "significance.csv",
        "targets.csv",
        "targets.md",
        "variance.csv",
        "claims.csv",
        "claims.md",
        "reference_runs.csv",
    ],
)
NOTEBOOKS = expand(
    f"{RESULTS}/notebooks/{{notebook}}.{{kind}}",
    notebook=["results", "curricula"],
    kind=["ipynb", "html"],
)


# Both belong to one machine, so they limit each job of a cluster, not all jobs together.
resource_scopes:
    gpu="local",
    power_meter="local",


wildcard_constraints:
    task="|".join(map(re.escape, STUDY.dataset_of)),
    dataset="|".join(map(re.escape, STUDY.task_of)),
    arm="|".join([*map(re.escape, config["arms"]), TRIAL]),
    fold="[0-9]+",
    seed_suffix="(_seed_[0-9]+)?",


def code(script, folder="workflow_scripts"):
    """Return a script or notebook of this workflow and the modules that it imports, as inputs.

    For rules whose outputs are quick to make again. The profiles leave out Snakemake's own trigger
    `code`, which would repeat preparation after each update of this clone.
    """
    path = BASE / folder / script
    return [shipped(str(file.relative_to(BASE))) for file in [path, *imported_modules(path, BASE)]]


def cores_for_data(most):
    """Return the cores for work on a data set's images: `most`, but one for the demo's few.

    On one core, nnU-Net's pools need not import nnU-Net in another process.
    """
    return lambda wildcards: 1 if STUDY.task_of[wildcards.dataset] == DEMO_TASK else most


def record_of(run):
    """Return the path of the `run.json` of a training (task, arm, fold, seed)."""
    task, arm, fold, seed = run
    suffix = STUDY.seed_suffix(seed)
    return Path(RUN.format(task=task, arm=arm, fold=fold, seed_suffix=suffix), "run.json")


def run_files(name, seeds=STUDY.seeds):
    """Return the path of one file of every run of the study with the given seeds."""
    return [str(record_of(run).with_name(name)) for run in STUDY.runs if run[-1] in seeds]


def refuse_changes(wildcards):
    """Exit if a training exists that the configuration would train differently.

    Snakemake calls this for every training of the DAG, before any job runs or any file is deleted.
    """
    seed = STUDY.seed_of(wildcards.seed_suffix)
    run = (wildcards.task, wildcards.arm, int(wildcards.fold), seed)
    try:
        check_unchanged(STUDY, run, record_of)
    except ConfigError as error:
        sys.exit(str(error))


def checked_first(wildcards):
    """Make a training wait until its study has been checked (and forecast, if needed).

    The list is empty: the check is not an input, so repeating it does not retrain anything. Trials
    of a search wait for the check in the first step of the search.
    """
    if workflow.is_main_process:
        refuse_changes(wildcards)
    done = Path(RUN.format(**wildcards), "run.json").is_file()
    if not done and wildcards.arm in config["arms"]:
        checkpoints.check_needs.get()
    return []


def trials_of_part(wildcards):
    """Return the runs of a part's trials, which were listed when the previous part was decided."""
    before = checkpoints.choose_frequencies.get(task=wildcards.task, part=int(wildcards.part) - 1)
    return expand(
        f"{RUN_OF_TRAINING_SEED}/run.json",
        task=wildcards.task,
        arm=json.loads(Path(before.output.part).read_text(encoding="utf-8"))["next"],
        fold=config["search"]["fold"],
    )


STYLE = shipped("config/plotting.yaml")
