"""Parameters of a trainer from variables of the environment, checked as in a configuration."""

import json
import os
from typing import Any

import yaml

from .messages import Validator, problems_of
from .schema import parameter_schemas

PREFIX = "nnUNet_curriculum_"
"""What a variable's name has before that of the parameter: `nnUNet_curriculum_max_batch=8`."""


def read_parameters(trainer: type) -> dict[str, Any]:
    """Return the parameters that the environment sets for a trainer's class, by name.

    Values are written as in YAML: `8`, `none`, `null`, `["3/7", 1]`.

    Raises ValueError with one line per variable that names no parameter of the class, or has an
    unsuitable value.
    """
    texts = {
        name.removeprefix(PREFIX): text
        for name, text in sorted(os.environ.items())
        if name.startswith(PREFIX)
    }
    if not texts:
        return {}
    known = {key: value for key, value in parameter_schemas().items() if hasattr(trainer, key)}
    schema = {"type": "object", "additionalProperties": False, "properties": known}
    values = {name: _read(text, known.get(name, {})) for name, text in texts.items()}
    problems = problems_of(Validator(schema).iter_errors(values), schema)
    if problems:
        raise ValueError("\n".join(PREFIX + problem for problem in problems))
    return values


def _read(text: str, schema: dict[str, Any]) -> Any:
    if schema.get("type") == "string":
        return text
    for read in (json.loads, yaml.safe_load):  # YAML 1.1 takes 3e-5 for a text
        try:
            return read(text)
        except (ValueError, yaml.YAMLError):
            continue
    return text
