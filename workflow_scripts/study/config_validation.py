"""Check a study's configuration against its schema, fill in defaults and report problems.

The Snakefile uses this module while it is parsed. It imports only packages that Snakemake installs.
"""

import copy
import difflib
import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError, validators

from workflow_scripts.common.errors import ConfigError
from workflow_scripts.study.curriculum_search import TRIAL


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
    _read_texts(config, schema)
    errors = list(_DefaultsValidator(schema).iter_errors(config))
    mistyped = {
        tuple(error.absolute_path)
        for error in errors
        if error.validator == "type" and "propertyNames" not in error.absolute_schema_path
    }
    problems: list[str] = []
    for error in errors:
        if error.validator == "type" or tuple(error.absolute_path) not in mistyped:
            problems += _explain(error, schema)
    shipped = schema["properties"]["checksums"]["propertyNames"]["enum"]
    problems = problems or list(_cross_check(config, shipped))
    if problems:
        raise ConfigError("\n".join(f"config: {line}" for line in dict.fromkeys(problems)))
    config["seeds"] = config["seeds"] or [config["training"]["seed"]]


def _read_texts(value: Any, subschema: dict[str, Any]) -> Any:
    """Return `value` with strings parsed as YAML scalars if the schema does not allow strings.

    Snakemake's `--config folds=[0,1]` yields a list of strings.
    """
    if isinstance(value, dict):
        properties, others = subschema.get("properties", {}), subschema.get("additionalProperties")
        for key in value:
            value[key] = _read_texts(value[key], properties.get(key) or others or {})
    elif isinstance(value, list):
        value[:] = [_read_texts(item, subschema.get("items", {})) for item in value]
    elif isinstance(value, str) and "type" in subschema and "string" not in subschema["type"]:
        try:
            read = yaml.safe_load(value)
        except yaml.YAMLError:
            return value
        return read if isinstance(read, bool | int | float | None) else value
    return value


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


_DefaultsValidator = validators.extend(
    Draft202012Validator,
    {"properties": _properties_with_defaults},
    # In the standard, 1.0 is also an integer; here it would result in a folder `fold_1.0`.
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    ),
)


def _explain(error: ValidationError, schema: dict[str, Any]) -> Iterator[str]:
    """Describe one jsonschema error, with one line per problem."""
    path = _join(error.absolute_path)
    value, allowed, rule = error.instance, error.validator_value, error.validator
    described = str(error.schema.get("description", "")).strip()
    if "propertyNames" in error.absolute_schema_path:
        yield _unknown_name(path, value, error)
    elif rule == "additionalProperties":
        known = error.schema["properties"]
        for key in sorted(set(value) - set(known), key=str):
            yield _unknown_key(path, str(key), known, schema)
    elif rule == "required":
        for key in sorted(set(allowed) - set(value)):
            subschema = error.schema["properties"][key]
            yield f"{_dot(path, key)} is missing. {subschema['description']}"
    elif rule in ("enum", "anyOf"):
        yield f"{path}: {_not_among(value, _names(error))}"
    elif rule == "uniqueItems":
        twice = [item for index, item in enumerate(value) if item in value[:index]]
        yield f"{path}: {twice[0]!r} is listed twice"
    elif rule == "type":
        names = allowed if isinstance(allowed, list) else [allowed]
        kinds = " or ".join(_KINDS[name] for name in names)
        yield f"{path or 'it'}: {_shown(value)} is not {kinds}. {described}".rstrip(" .") + "."
    elif rule == "pattern":
        yield f"{path}: {_shown(value)} does not match {allowed}. {described}".rstrip()
    else:
        yield f"{path}: {error.message}"


_KINDS = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "a whole number",
    "null": "null",
    "number": "a number",
    "object": "a section with keys",
    "string": "a text",
}


def _unknown_name(path: str, name: Any, error: ValidationError) -> str:
    """Describe a name that a map of arms, checksums or overrides does not allow."""
    if allowed := _names(error):
        return f"{path}: {_not_among(name, allowed)}"
    pattern = error.schema.get("pattern")
    return f"{_dot(path, str(name))}: the name {_shown(name)} does not match {pattern}"


def _names(error: ValidationError) -> list[Any]:
    """List the names that are allowed for a value, in all branches of the schema."""
    if error.context:
        return [name for branch in error.context for name in _names(branch)]
    return list(error.schema.get("enum", []))


def _unknown_key(path: str, key: str, known: Iterable[str], schema: dict[str, Any]) -> str:
    """Describe an unknown key; suggest the nearest one in its section or the same one elsewhere."""
    text = f"{_dot(path, key)} is not a key"
    elsewhere = [name for name in _all_keys(schema) if name.rpartition(".")[2] == key]
    near = difflib.get_close_matches(key, list(known), n=1)
    if near or elsewhere:
        return f"{text}; did you mean {_dot(path, near[0]) if near else elsewhere[0]}?"
    return f"{text}; the keys there are {', '.join(known)}"


def _all_keys(schema: dict[str, Any]) -> Iterator[str]:
    """List the paths of all keys that do not contain a user-defined name."""
    for section, subschema in schema["properties"].items():
        yield section
        yield from (f"{section}.{key}" for key in subschema.get("properties", {}))


def _not_among(value: Any, allowed: list[Any]) -> str:
    """Describe a value that is not in `allowed`; suggest the nearest one, if any."""
    near = difflib.get_close_matches(str(value), map(str, allowed), n=1, cutoff=0.7)
    if isinstance(value, str) and near:
        return f"{value!r} is unknown; did you mean {near[0]}?"
    return f"{_shown(value)} is not one of {', '.join(str(item) for item in allowed)}"


def _cross_check(config: dict[str, Any], shipped: list[str]) -> Iterator[str]:
    """Yield the problems that a schema cannot express, in a configuration that satisfies it.

    `shipped` are the tasks that need no entry in `own_tasks`.
    """
    arms = config["arms"]
    if config["reference_arm"] not in arms:
        yield f"reference_arm: {_not_among(config['reference_arm'], list(arms))}"
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


def _shown(value: Any) -> str:
    """Return a value as one short line, with None as YAML's null."""
    text = "null (nothing)" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _dot(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _join(parts: Iterable[str | int]) -> str:
    """Join a path: `tasks[0]`, `training.epochs`."""
    path = ""
    for part in parts:
        path = f"{path}[{part}]" if isinstance(part, int) else _dot(path, str(part))
    return path
