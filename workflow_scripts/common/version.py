"""The workflow's version, as stated in CITATION.cff."""

from functools import cache
from pathlib import Path

import yaml

CITATION = Path(__file__).resolve().parents[2] / "CITATION.cff"


@cache
def workflow_version() -> str:
    """Return the version of this workflow, such as `0.2.0`."""
    return str(yaml.safe_load(CITATION.read_text(encoding="utf-8"))["version"])
