"""
What all rules share: the checked configuration, constants, wildcard constraints and helpers.

REQUIRED INPUTS:

    config (from --configfile, or config/demo.yaml), config/schemas/config.schema.yaml, config/datasets.tsv

OUTPUTS: none, there are no rules here
"""

import hashlib
import json
import re
import sys
from itertools import product
from pathlib import Path

BASE = Path(workflow.basedir)
sys.path.insert(0, str(BASE / "workflow_scripts"))

from config_tools import ConfigError, check_config
from msd import read_register
from nnunet import PLANS_OF_PLANNER
from own_task import check_own_tasks, dataset_of
from resources import Requests
from user_packages import keep_out

keep_out()
try:
    check_config(config, BASE / "config/schemas/config.schema.yaml")
    check_own_tasks(config, Path("resources/nnUNet_raw"))
except ConfigError as error:
    sys.exit(str(error))

MSD = read_register(BASE / "config/datasets.tsv")
DEMO_TASK = "Task99_BrainTissue"
DATASET_OF = {task: dataset_of(task) for task in [*MSD, DEMO_TASK, *config["own_tasks"]]}
TASK_OF = {dataset: task for task, dataset in DATASET_OF.items()}

PLANNING = config["planning"]
BASE_PLANS = PLANS_OF_PLANNER[PLANNING["planner"]]
if PLANNING["gpu_memory_target_gb"] is not None:
    BASE_PLANS += f"-{PLANNING['gpu_memory_target_gb']:g}GB"
DATA_IDENTIFIER = f"{BASE_PLANS}_{PLANNING['configuration']}"

HAS_BUDGET = set(config["budget"].values()) != {None}
STUDY = config["study"]
RUNS = list(product(config["tasks"], config["arms"], config["folds"]))

TABLES = expand(
    f"results/{STUDY}/tables/{{table}}",
    table=[
        *(f"{name}.csv" for name in ("runs", "cases", "epochs", "stages", "energy")),
        *(f"comparison.{kind}" for kind in ("csv", "md", "tex")),
        "class_balance.csv",
        "significance.csv",
        *("claims.csv", "claims.md", "reference_runs.csv"),
    ],
)
FIGURES = expand(
    f"results/{STUDY}/figures/{{figure}}.{{kind}}",
    figure=["dice", "cost", "convergence", "schedule", "patches", "class_balance", "predictions"],
    kind=["svg", "png"],
)
NOTEBOOKS = expand(
    f"results/{STUDY}/notebooks/{{notebook}}.{{kind}}",
    notebook=["results", "curricula"],
    kind=["ipynb", "html"],
)


wildcard_constraints:
    study=re.escape(STUDY),
    task="|".join(map(re.escape, DATASET_OF)),
    dataset="|".join(map(re.escape, TASK_OF)),
    arm="|".join(map(re.escape, config["arms"])),
    fold="[0-4]",


def overrides(task):
    """Return what the configuration changes in the plans of a task."""
    chosen = PLANNING["overrides"]
    merged = {**chosen.get("all", {}), **chosen.get(task, {})}
    return {key: value for key, value in merged.items() if value is not None}


def plans_name(task):
    """Return the name of the task's plans: nnU-Net's, or one of its own for these overrides."""
    changed = overrides(task)
    if not changed:
        return BASE_PLANS
    changed["configuration"] = PLANNING["configuration"]
    digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]
    return f"{BASE_PLANS}_{digest}"


def plans_file(task):
    return f"resources/nnUNet_preprocessed/{DATASET_OF[task]}/{plans_name(task)}.json"


def manifest_file(task):
    return f"resources/nnUNet_preprocessed/{DATASET_OF[task]}/{DATA_IDENTIFIER}.manifest.json"


def splits_file(task):
    return f"resources/nnUNet_preprocessed/{DATASET_OF[task]}/splits_final.json"


def training_of(arm):
    """Return what decides a training of the arm: the section `training`, with the arm's own length."""
    settings = {key: value for key, value in config["training"].items() if key != "threads"}
    return settings | {"epochs": config["arms"][arm]["epochs"] or settings["epochs"]}


def run_files(name):
    """Return the path of one file of every run of the study."""
    return [f"results/{STUDY}/runs/{task}/{arm}/fold_{fold}/{name}" for task, arm, fold in RUNS]


def forecast_first(wildcards):
    """Let a training wait for the check of the budget, or for the forecast that it is timed by.

    Nothing is returned: neither is an input, so one that is made anew trains nothing again.
    """
    if HAS_BUDGET:
        checkpoints.check_budget.get(study=wildcards.study)
    elif REQUESTS.forecast_decides:
        checkpoints.forecast_study.get(study=wildcards.study)
    return []


def describe_run(wildcards):
    """Return the names that identify a training."""
    return {
        "study": wildcards.study,
        "task": wildcards.task,
        "dataset": DATASET_OF[wildcards.task],
        "arm": wildcards.arm,
        "trainer": config["arms"][wildcards.arm]["trainer"],
        "fold": int(wildcards.fold),
        "configuration": PLANNING["configuration"],
        "plans": plans_name(wildcards.task),
    }


REQUESTS = Requests(config, BASE / "config/published/nnunet_plans.tsv", DATASET_OF, describe_run)
