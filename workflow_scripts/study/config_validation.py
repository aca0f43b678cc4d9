"""Check a study's configuration against its schema, fill in defaults and report problems.

The Snakefile uses this module while it is parsed. It imports only packages that Snakemake installs.
"""

import copy
import difflib
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError, validators

from workflow_scripts.common.errors import ConfigError
from workflow_scripts.study.curriculum_search import TRIAL
from workflow_scripts.trainers.curricula.standalone.messages import (
    Validator,
    not_among,
    problems_of,
    read_texts,
)


def check_config(config: dict[str, Any], schema_path: str | Path) -> None:
    """Validate `config` and fill in the schema's defaults, in place.

    Args:
        config: the configuration as merged by Snakemake.
        schema_path: JSON schema (draft 2020-12) in YAML.

    Raises:
        ConfigError: one line per problem: path, value, allowed values, nearest known key; or the
            new path of a configuration that was named by its former one (`moved`).
    """
    if isinstance(config.get("moved"), dict):
        moved = config["moved"].items()
        raise ConfigError("\n".join(f"config: {old} has moved to {new}" for old, new in moved))
    schema = yaml.safe_load(Path(schema_path).read_text(encoding="utf-8"))
    read_texts(config, schema)
    problems = problems_of(_DefaultsValidator(schema).iter_errors(config), schema)
    shipped = schema["properties"]["checksums"]["propertyNames"]["enum"]
    problems = problems or list(_cross_check(config, shipped))
    if problems:
        raise ConfigError("\n".join(f"config: {line}" for line in dict.fromkeys(problems)))
    config["seeds"] = config["seeds"] or [config["training"]["seed"]]


def _properties_with_defaults(
    validator: Any, properties: dict[str, Any], instance: Any, schema: dict[str, Any]
) -> Iterator[ValidationError]:
    """Set the defaults of absent keys, then validate (recipe from jsonschema's documentation)."""
    if validator.is_type(instance, "object"):
        for key, subschema in properties.items():
            if "default" in subschema:
                instance.setdefault(key, copy.deepcopy(subschema["default"]))
    yield from Draft202012Validator.VALIDATORS["properties"](
        validator, properties, instance, schema
    )


_DefaultsValidator = validators.extend(Validator, {"properties": _properties_with_defaults})


def _cross_check(config: dict[str, Any], shipped: list[str]) -> Iterator[str]:
    """Yield the problems that a schema cannot express, in a configuration that satisfies it.

    `shipped` are the tasks that need no entry in `own_tasks`.
    """
    arms = config["arms"]
    if config["reference_arm"] not in arms:
        yield f"reference_arm: {not_among(config['reference_arm'], list(arms))}"
    for number, (name, arm) in enumerate(arms.items()):
        twins = [other for other in list(arms)[:number] if arms[other] == arm]
        if twins:
            yield f"arms.{name}: identical to arms.{twins[0]}; change its parameters"
        listed = arm["parameters"].get("stage_list")
        total = sum(stage["epochs"] for stage in listed or [])
        key = f"arms.{name}.epochs" if arm["epochs"] else "training.epochs"
        epochs = arm["epochs"] or config["training"]["epochs"]
        if listed and total != epochs:
            yield (
                f"arms.{name}.parameters.stage_list: its epochs add up to {total}, but "
                f"{key} is {epochs}"
            )
        if re.fullmatch(TRIAL, name):
            yield f"arms.{name}: this name is reserved for trials of the search; choose another"
    if config["seeds"] and config["training"]["seed"] not in config["seeds"]:
        seed = config["training"]["seed"]
        yield (
            f"seeds: training.seed ({seed}) is not among them. Add it, or set training.seed to one "
            "of them: the search and the evaluation of scale factors use it"
        )
    search = config["search"]
    if search["stages"] % search["parts"]:
        yield (
            f"search.stages is {search['stages']}, which is not a multiple of search.parts "
            f"({search['parts']})"
        )
    for value in search["candidates"]:
        if Fraction(str(value)) == 0 or Fraction(str(value)) > 1:
            yield f"search.candidates: {value} must be above 0 and at most 1"
    yield from _check_tasks(config, shipped)
    for task in config["planning"]["overrides"]:
        if task not in ("all", *config["tasks"]):
            yield f"planning.overrides: {task!r} is not among the study's tasks"
    for task in config["comparison"]["task_margins"]:
        if task not in config["tasks"]:
            yield f"comparison.task_margins: {task!r} is not among the study's tasks"
    yield from _check_axes(config)


def _check_axes(config: dict[str, Any]) -> Iterator[str]:
    """Yield problems: patch sizes with too many or too few axes for the planned configuration."""
    configuration = config["planning"]["configuration"]
    axes = 2 if configuration == "2d" else 3
    sizes = {
        f"planning.overrides.{task}.patch_size": override.get("patch_size")
        for task, override in config["planning"]["overrides"].items()
    }
    for name, arm in config["arms"].items():
        for number, stage in enumerate(arm["parameters"].get("stage_list") or []):
            key = f"arms.{name}.parameters.stage_list[{number}].patch_size"
            sizes[key] = stage["patch_size"]
    for key, size in sizes.items():
        if size and len(size) != axes:
            yield (
                f"{key}: {size} has {len(size)} axes, but planning.configuration {configuration} "
                f"has {axes}"
            )


def _check_tasks(config: dict[str, Any], shipped: list[str]) -> Iterator[str]:
    """Yield problems: tasks without a description, and own tasks with another task's number."""
    named: dict[int, str] = {_number(task): task for task in shipped}
    for task in config["own_tasks"]:
        other = named.setdefault(_number(task), task)
        if other != task:
            yield (
                f"own_tasks.{task}: {other} also has the number {_number(task)}, by which nnU-Net "
                "identifies datasets; choose a free one"
            )
    known = [*shipped, *config["own_tasks"]]
    for number, task in enumerate(config["tasks"]):
        near = difflib.get_close_matches(task, known, n=1, cutoff=0.7)
        if task not in known:
            advice = f"did you mean {near[0]}?" if near else "describe it in own_tasks"
            yield f"tasks[{number}]: {task!r} is unknown; {advice}"


def _number(task: str) -> int:
    return int(task.removeprefix("Task").partition("_")[0])
