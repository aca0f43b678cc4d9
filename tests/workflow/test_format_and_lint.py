"""Formatting, linters and types; notebooks without outputs."""

import json
import subprocess
import sys

import pytest

from helpers.tree import ROOT

WORKFLOW_FILES = [ROOT / "Snakefile", *sorted(ROOT.glob("rules/*.smk"))]
TOOLS = {
    "ruff check": ["ruff", "check", "--no-cache"],
    "ruff format": ["ruff", "format", "--check", "--diff", "--no-cache"],
    "snakefmt": ["snakefmt", "--check", "--diff", *map(str, WORKFLOW_FILES)],
    "mypy": ["mypy"],
    "snakemake --lint": ["snakemake", "--lint"],
}


@pytest.mark.parametrize("command", TOOLS.values(), ids=TOOLS)
def test_tool_is_content(command):
    run = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_notebooks_are_committed_without_outputs():
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            assert not cell.get("outputs"), f"{path.name}: regenerate it with --clear-output"
            assert cell.get("execution_count") is None


def test_every_cell_has_a_name_of_its_own():
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        names = [cell["id"] for cell in json.loads(path.read_text())["cells"]]
        assert len(set(names)) == len(names), path.name
