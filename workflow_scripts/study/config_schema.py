"""The configuration's JSON schema, made from `config_model`.

`python -m workflow_scripts.study.document_config` writes it to `config/schemas/`, which the
Snakefile and editors read, so that neither needs pydantic.
"""

from typing import Any

from workflow_scripts.study.config_model import Config, Task
from workflow_scripts.trainers.curricula.standalone.schema import parameter_schemas, plain_schema


def make_schema() -> dict[str, Any]:
    """Return the schema (draft 2020-12) of a study's configuration, without references."""
    schema = plain_schema(Config)
    sections = schema["properties"]
    sections["arms"]["additionalProperties"]["properties"]["parameters"] |= {
        "additionalProperties": False,
        "properties": parameter_schemas(),
    }
    # pydantic describes no alternative names of a map.
    names = [{"enum": ["all"]}, *plain_schema(Task)["anyOf"]]
    sections["planning"]["properties"]["overrides"]["propertyNames"] = {"anyOf": names}
    margins = sections["comparison"]["properties"]["task_margins"]
    margins["propertyNames"] = {"anyOf": names[1:]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of a study",
        **schema,
    }
