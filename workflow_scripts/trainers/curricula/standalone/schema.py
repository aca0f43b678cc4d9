"""JSON schemas of the trainers' parameters, made from their settings. Imports no torch."""

from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter

from ..schedules.scale_factors import ScaleSpaceSettings
from ..schedules.settings import (
    FIDELITY,
    BatchSettings,
    FrequencySettings,
    GrowthSettings,
    LowpassSettings,
    OptimizerSettings,
)

PARAMETERS = (
    BatchSettings,
    GrowthSettings,
    FrequencySettings,
    LowpassSettings,
    OptimizerSettings,
    ScaleSpaceSettings,
)
"""Classes whose fields an arm may set as parameters of its trainer."""
FIXED = "curriculum"
"""A trainer's attribute that its class fixes; no parameter of an arm."""
CLASS_DEFAULT = "x-class-default"
"""Default of a trainer's attribute. It is not filled in: an arm's parameters are what was set."""
FIDELITY_ONLY = "x-fidelity"
"""Whether a parameter only reproduces a choice of the authors."""


def parameter_schemas() -> dict[str, Any]:
    """Return the schemas of an arm's parameters."""
    found = {}
    for kind in PARAMETERS:
        hints = get_type_hints(kind, include_extras=True)
        for name, value in plain_schema(kind)["properties"].items():
            if name != FIXED:
                value[CLASS_DEFAULT] = value.pop("default")
                found[name] = value
                if FIDELITY in get_args(hints[name]):
                    value[FIDELITY_ONLY] = True
    return found


def plain_schema(kind: Any) -> dict[str, Any]:
    """Return the schema of a class, simplified so that a message can quote each part of it."""
    schema = TypeAdapter(kind).json_schema()
    definitions = schema.pop("$defs", {})
    simplified: dict[str, Any] = _simplify(schema, definitions)
    return simplified


def _simplify(node: Any, definitions: dict[str, Any]) -> Any:
    """Resolve references, drop titles, join types, and let sections default to `{}`."""
    if isinstance(node, list):
        return [_simplify(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        node = {**definitions[node["$ref"].rpartition("/")[2]], **node}
    if "patternProperties" in node:  # the names of a map
        ((pattern, values),) = node["patternProperties"].items()
        node = {**node, "propertyNames": {"type": "string", "pattern": pattern}}
        node["additionalProperties"] = values
    left_out = ("$ref", "patternProperties", "properties", "title")
    properties = {
        name: _simplify(value, definitions) for name, value in node.get("properties", {}).items()
    }
    node = {
        key: _simplify(value, definitions) for key, value in node.items() if key not in left_out
    }
    if "const" in node:
        node["enum"] = [node.pop("const")]
    if "anyOf" in node:
        node = _join_types(node)
    if "description" in node:
        node["description"] = " ".join(node["description"].split())
    if properties:
        node["properties"] = properties
    for name, value in properties.items():
        if value.get("type") == "object" and name not in node.get("required", []):
            value.setdefault("default", {})
    return node


def _join_types(node: dict[str, Any]) -> dict[str, Any]:
    """Return `anyOf` as one schema with several types, if no branch lists its values."""
    branches = [dict(branch) for branch in node["anyOf"]]
    if any("enum" in branch for branch in branches):
        return node
    types = [branch.pop("type") for branch in branches]
    joined = {key: value for branch in branches for key, value in branch.items()}
    rest = {key: value for key, value in node.items() if key != "anyOf"}
    return {"type": types, **joined, **rest}
