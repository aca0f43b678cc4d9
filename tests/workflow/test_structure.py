"""The layout of the code: its folders, and which of them may import which."""

import ast
import re
import sys
from pathlib import Path

import pytest

from helpers.environments import every_rule, imports_of, rules, top_level
from helpers.tree import ROOT
from workflow_scripts.study.script_inputs import imported_modules

CODE = ROOT / "workflow_scripts"
FILES = sorted(path for path in CODE.rglob("*.py") if path.name != "__init__.py")
RULE_FILES = sorted(ROOT.glob("rules/*.smk"))
SHARED = ["trainers", "common", "records", "study"]
"""Each may import those before it, and every stage may import all of them."""
ALSO = {"benchmark": {"training", "forecast"}, "forecast": {"planning"}}
"""Stages that a stage may import besides itself."""
PARSING = {"yaml", "jsonschema", "snakemake", "pydantic", "typing_extensions"}
"""Packages that the Snakefile's modules may import, because Snakemake installs them."""
SCRIPTS = {rule.script for rule in rules().values()}


def short(path):
    return str(path.relative_to(ROOT))


def folder_of(path):
    return path.relative_to(CODE).parts[0]


def imports(path):
    """Return the files of this project that a file imports itself."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    found = {ROOT / f"{name.replace('.', '/')}.py" for name in names}
    return {file for file in found if file in FILES}


def test_every_module_is_in_a_folder():
    assert [path.name for path in CODE.glob("*.py")] == ["__init__.py"]
    stages = {path.stem for path in RULE_FILES} - {"common"}
    assert {path.name for path in CODE.iterdir() if path.is_dir()} - {"__pycache__"} == {
        *stages,
        *SHARED,
    }


@pytest.mark.parametrize("path", FILES, ids=short)
def test_imports_point_downwards(path):
    here = folder_of(path)
    allowed = {here, *(SHARED[: SHARED.index(here)] if here in SHARED else SHARED)}
    allowed |= ALSO.get(here, set())
    assert {short(file) for file in imports(path) if folder_of(file) not in allowed} == set()
    assert {short(file) for file in imports(path) & SCRIPTS} == set(), "a script"


@pytest.mark.parametrize("path", [f for f in FILES if folder_of(f) != "trainers"], ids=short)
def test_imports_are_absolute(path):
    nodes = ast.walk(ast.parse(path.read_text()))
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in nodes)


def test_the_trainers_stand_alone():
    """nnU-Net imports them by another name, from wherever `nnUNet_extTrainer` points."""
    for path in (CODE / "trainers/curricula").rglob("*.py"):
        # What the installed package has for nnU-Net must not be found by this way.
        assert (path.parent / "__init__.py").exists() == (path.parent.name != "external")
        assert "workflow_scripts" not in re.sub(r'"""(.|\n)*?"""', "", path.read_text()), path


@pytest.mark.parametrize("path", [f for f in FILES if folder_of(f) == "study"], ids=short)
def test_the_snakefile_imports_what_snakemake_installs(path):
    tops, pending, seen = set(), [path], set()
    while pending:
        file = pending.pop()
        seen.add(file)
        for node in ast.parse(file.read_text()).body:  # at the top level: run on import
            if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0):
                tops.add(top_level(ast.unparse(node)))
        pending += imports(file) - seen
    assert tops - sys.stdlib_module_names - {"workflow_scripts"} <= PARSING


def test_a_rule_file_and_a_folder_of_scripts_belong_together():
    for rule in rules().values():
        assert folder_of(rule.script) in {path.stem for path in RULE_FILES}
    for path in RULE_FILES:
        scripts = re.findall(r"\.\./workflow_scripts/(\w+)/", path.read_text())
        assert set(scripts) <= {path.stem}, path.name


def test_rules_are_named_after_their_script():
    for name, rule in rules().items():
        assert re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", name), f"{name} is not of the form verb_noun"
        # All words in the name of a shared script occur in the names of all its rules.
        assert set(rule.script.stem.split("_")) <= set(name.split("_"))
        assert all(log.startswith(f"logs/{name}/") for log in rule.logs)
        assert rule.logs
        assert rule.environment


@pytest.mark.parametrize("path", RULE_FILES, ids=short)
def test_rule_files_open_with_their_contract(path):
    docstring = re.match(r'"""(.+?)"""', path.read_text(), flags=re.DOTALL)
    assert docstring, "a rule file begins with a docstring"
    assert "REQUIRED INPUTS" in docstring[1]
    assert "OUTPUTS" in docstring[1]


def test_a_rule_without_a_script_only_gathers():
    for name, rule in every_rule().items():
        assert rule.script or not rule.logs, name


def test_imports_are_found_through_modules_and_names():
    """Each of these is reached in a different way; a parser that misses one proves nothing."""
    found = {name: imported_modules(rule.script) for name, rule in rules().items()}
    curricula = CODE / "trainers/curricula"
    assert CODE / "common/errors.py" in found["plot_dice"]
    assert curricula / "schedules/patch_growth.py" in found["forecast_study"]  # relative imports
    assert curricula / "arms.py" in found["forecast_study"]  # `import_module`
    assert CODE / "benchmark/timed_training.py" in found["bench_trainers"]  # `python -m`
    assert "from IPython.display import Image, Markdown" in imports_of(
        rules()["run_results_notebook"].script
    )
    of_notebook = imported_modules(ROOT / "notebooks/results.ipynb")
    assert CODE / "report/results_page.py" in of_notebook
    assert CODE / "common/formatting.py" in of_notebook
    assert all(isinstance(path, Path) and path.is_file() for path in found["train_fold"])
