"""Formatting, linters, types, and the house's rules for scripts, rule files and notebooks."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(ROOT.glob("workflow_scripts/**/*.py"))
RULE_FILES = sorted(ROOT.glob("rules/*.smk"))
WORKFLOW_FILES = [ROOT / "Snakefile", *RULE_FILES]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))

TOOLS = {
    "ruff check": ["ruff", "check", "--no-cache"],
    "ruff format": ["ruff", "format", "--check", "--diff", "--no-cache"],
    "snakefmt": ["snakefmt", "--check", "--diff", *map(str, WORKFLOW_FILES)],
    "mypy": ["mypy"],
    "snakemake --lint": ["snakemake", "--lint"],
}


def short(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("command", TOOLS.values(), ids=TOOLS)
def test_tool_is_content(command):
    run = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=short)
def test_scripts_are_short(path):
    assert len(path.read_text().splitlines()) < 300


@pytest.mark.parametrize("path", RULE_FILES, ids=short)
def test_rule_files_are_short_and_open_with_their_contract(path):
    text = path.read_text()
    assert len(text.splitlines()) < 150
    docstring = re.match(r'"""(.+?)"""', text, flags=re.DOTALL)
    assert docstring, "a rule file begins with a docstring"
    if path.name != "common.smk":
        assert "REQUIRED INPUTS" in docstring[1]
        assert "OUTPUTS" in docstring[1]
        assert not re.search(r"^def ", text, flags=re.MULTILINE), "functions belong into common.smk"


@pytest.mark.parametrize("path", RULE_FILES, ids=short)
def test_rules_are_named_after_their_script_and_have_log_and_environment(path):
    blocks = re.split(r"^(?:rule|checkpoint) (\w+):\n", path.read_text(), flags=re.MULTILINE)[1:]
    for name, body in zip(blocks[::2], blocks[1::2], strict=True):
        assert re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", name), f"{name} is no verb_noun"
        script = re.search(r"\n    script:\n        \"(.+)\"", body)
        if script:
            # A script that several rules share has the words that their names have in common.
            assert set(Path(script[1]).stem.split("_")) <= set(name.split("_"))
            assert (path.parent / script[1]).resolve() in SCRIPTS
            assert f'"logs/{name}/' in body
            assert "\n    conda:" in body


def test_modules_import_neither_snakemake_nor_scripts():
    scripts = {path for path in SCRIPTS if "__main__" in path.read_text()}
    for path in set(SCRIPTS) - scripts:
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(str(node.module).partition(".")[0])
        assert not names & {"snakemake", *(script.stem for script in scripts)}, short(path)


def test_notebooks_are_committed_without_outputs():
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text())["cells"]:
            assert not cell.get("outputs"), f"{short(path)}: make it anew with --clear-output"
            assert cell.get("execution_count") is None
