"""What is wrong with a value, by its JSON schema, in one line that names it.

For a study's configuration and for variables of the environment. Imports no torch.
"""

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError, validators

# In the standard, 1.0 is also an integer; here it would result in a folder `fold_1.0`.
Validator = validators.extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    ),
)
"""Validator of JSON schema (draft 2020-12)."""


def problems_of(errors: Iterable[ValidationError], schema: dict[str, Any]) -> list[str]:
    """Return one line per problem: path, value, allowed values, nearest known key.

    Args:
        errors: what a validator found.
        schema: the whole schema.
    """
    errors = list(errors)
    mistyped = {
        tuple(error.absolute_path)
        for error in errors
        if error.validator == "type" and "propertyNames" not in error.absolute_schema_path
    }
    return [
        line
        for error in errors
        if error.validator == "type" or tuple(error.absolute_path) not in mistyped
        for line in _explain(error, schema)
    ]


def read_texts(value: Any, subschema: dict[str, Any]) -> Any:
    """Return `value` with strings parsed as YAML scalars if the schema does not allow strings.

    Snakemake's `--config folds=[0,1]` yields a list of strings.
    """
    if isinstance(value, dict):
        properties, others = subschema.get("properties", {}), subschema.get("additionalProperties")
        for key in value:
            value[key] = read_texts(value[key], properties.get(key) or others or {})
    elif isinstance(value, list):
        value[:] = [read_texts(item, subschema.get("items", {})) for item in value]
    elif isinstance(value, str) and "type" in subschema and "string" not in subschema["type"]:
        try:
            read = yaml.safe_load(value)
        except yaml.YAMLError:
            return value
        return read if isinstance(read, bool | int | float | None) else value
    return value


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
        yield f"{path}: {_REFUSED.get(str(value)) or not_among(value, _names(error))}"
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


_REFUSED = {
    "3d_cascade_fullres": "3d_cascade_fullres is not trained, because its network needs the "
    "predictions of all five folds of a finished 3d_lowres training as input. Train 3d_lowres and "
    "3d_fullres, as two studies"
}
"""Values of nnU-Net that are no option here, with the reason and the way around."""

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
        return f"{path}: {not_among(name, allowed)}"
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


def not_among(value: Any, allowed: list[Any]) -> str:
    """Describe a value that is not in `allowed`; suggest the nearest one, if any."""
    near = difflib.get_close_matches(str(value), map(str, allowed), n=1, cutoff=0.7)
    if isinstance(value, str) and near:
        return f"{value!r} is unknown; did you mean {near[0]}?"
    return f"{_shown(value)} is not one of {', '.join(str(item) for item in allowed)}"


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
