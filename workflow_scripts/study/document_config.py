"""Write `docs/reference/configuration.md` from the configuration's schema.

Run `python -m workflow_scripts.study.document_config` after changing the schema.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from workflow_scripts.study.config_validation import resolve

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "config" / "schemas" / "config.schema.yaml"
PAGE = ROOT / "docs" / "reference" / "configuration.md"

INTRODUCTION = """\
<!-- Generated from config/schemas/config.schema.yaml by workflow_scripts.study.document_config -->

# Configuration keys

A configuration file describes one study. [config/README.md](../../config/README.md) lists the
shipped ones and explains how to set keys on the command line. Only `study`, `tasks`, `folds`,
`arms` and `training` are required. An unknown key stops the run before anything is made;
the message gives its path and the nearest valid key.
"""


def render(schema: dict[str, Any]) -> str:
    """Return the page for a schema, as Markdown."""
    top = schema["properties"]
    single = {key: value for key, value in top.items() if not _is_section(value, schema)}
    lines = [INTRODUCTION, "## Top level", ""]
    lines += _table(single, schema["required"], schema)
    for key, subschema in top.items():
        if _is_section(subschema, schema):
            lines += ["", f"## `{key}`", "", subschema["description"], ""]
            if "properties" in subschema:
                lines += _table(subschema["properties"], subschema.get("required", []), schema)
            else:
                lines += _map(resolve(subschema["additionalProperties"], schema), schema)
    return "\n".join(lines) + "\n"


def _is_section(subschema: dict[str, Any], schema: dict[str, Any]) -> bool:
    """Return whether a key gets its own table: it is an object or a map of objects."""
    others = subschema.get("additionalProperties") or {}
    return "properties" in subschema or "properties" in resolve(others, schema)


def _map(values: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    return [
        f"Each entry has: {values['description'][0].lower()}{values['description'][1:]}",
        "",
        *_table(values["properties"], values.get("required", []), schema),
    ]


def _table(properties: dict[str, Any], required: list[str], schema: dict[str, Any]) -> list[str]:
    rows = list(_rows("", properties, required, schema))
    return ["| key | value | default | meaning |", "| --- | --- | --- | --- |", *rows]


def _rows(
    prefix: str, properties: dict[str, Any], required: list[str], schema: dict[str, Any]
) -> Iterator[str]:
    """Yield one row per key; a nested object is followed by the rows of its keys."""
    for key, raw in properties.items():
        subschema = resolve(raw, schema)
        if "default" in subschema:
            text = yaml.safe_dump(subschema["default"], default_flow_style=True, width=math.inf)
            default = f"`{text.splitlines()[0]}`"
        else:
            default = "**required**" if key in required else "not set"
        description = " ".join(subschema["description"].split()).replace("|", "\\|")
        yield f"| `{prefix}{key}` | {_allowed(subschema, schema)} | {default} | {description} |"
        if "properties" in subschema:
            yield from _rows(f"{prefix}{key}.", subschema["properties"], [], schema)
        elif _is_section(subschema, schema):
            values = resolve(subschema["additionalProperties"], schema)
            yield from _rows(f"{prefix}{key}.*.", values["properties"], [], schema)


def _allowed(subschema: dict[str, Any], schema: dict[str, Any]) -> str:
    """Return a short description of the values that a key takes."""
    if "enum" in subschema:
        return ", ".join(f"`{value}`" for value in subschema["enum"])
    if "anyOf" in subschema:
        branches = [resolve(branch, schema) for branch in subschema["anyOf"]]
        return " or ".join(_allowed(branch, schema) for branch in branches)
    kinds = subschema["type"] if isinstance(subschema["type"], list) else [subschema["type"]]
    text = _KINDS[kinds[0]]
    if "maxItems" in subschema:
        text = f"{subschema['maxItems']} values"
    if "items" in subschema:
        text += f": {_allowed(resolve(subschema['items'], schema), schema)}"
    for bound, sign in {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤"}.items():
        if bound in subschema:
            text += f" {sign} {subschema[bound]}"
    return " or ".join([text, *(_KINDS[kind] for kind in kinds[1:])])


_KINDS = {
    "array": "list",
    "boolean": "`true`, `false`",
    "integer": "whole number",
    "null": "`null`",
    "number": "number",
    "object": "section",
    "string": "text",
}


if __name__ == "__main__":
    PAGE.write_text(render(yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))), encoding="utf-8")
