"""What the rules import and what locks and environments hold: found by reading, not by running."""

import ast
import json
import re
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import yaml

from tree import ROOT

SCRIPTS = ROOT / "workflow_scripts"
ENVIRONMENTS = sorted(ROOT.glob("envs/*.yaml"))
RULE_FILES = [ROOT / "Snakefile", *sorted(ROOT.glob("rules/*.smk"))]
OWN = {"__future__", "snakemake", "trainers"} | {path.stem for path in SCRIPTS.glob("*.py")}


def rules():
    """Return the rules that have a script, by name: paths of `script` and `environment`."""
    found = {}
    for path in RULE_FILES:
        blocks = re.split(r"^(?:rule|checkpoint) (\w+):$", path.read_text(), flags=re.MULTILINE)
        for name, block in zip(blocks[1::2], blocks[2::2], strict=True):
            named = {
                key: (path.parent / value).resolve()
                for key, value in re.findall(r"^    (conda|script):\s+\"([^\"]+)\"", block, re.M)
            }
            if "script" in named:
                found[name] = SimpleNamespace(script=named["script"], environment=named["conda"])
    return found


def pins(name):
    """Read a lock: package -> set of versions (two where Python versions need different ones)."""
    found = {}
    for line in (ROOT / name).read_text().splitlines():
        if line and not line.lstrip().startswith("#"):
            package, version = re.fullmatch(r"([a-z0-9.-]+)==(\S+)(?: ; .+)?", line).groups()
            found.setdefault(package, set()).add(version)
    return found


def environment_pins(path):
    """Read an environment: (conda's pins, pip's pins), package -> version."""
    *conda, last = yaml.safe_load(path.read_text())["dependencies"]
    pip = last["pip"] if isinstance(last, dict) else []
    conda += [] if isinstance(last, dict) else [last]
    assert conda.pop(0) == "python=3.11"
    assert ("pip" in conda) == bool(pip)
    matches = [re.fullmatch(r"([a-z0-9-]+)=([0-9][^=]*)", pin) for pin in conda if pin != "pip"]
    return dict(match.groups() for match in matches), dict(pin.split("==") for pin in pip)


def modules(node):
    """Return the dotted names that an import statement or `import_module("...")` asks for."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        # Of the trainers' package alone; its modules import each other as `.name`.
        return [f"trainers.curricula.{node.module}" if node.level else node.module]
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
        return [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
    return []


def own_files(node):
    """Return the files of this project that a node of the syntax tree leads to."""
    files = [SCRIPTS / f"{name.replace('.', '/')}.py" for name in modules(node)]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        files += [SCRIPTS / node.value] if re.fullmatch(r"\w+\.py", node.value) else []
    return [path for path in files if path.exists()]


def statements(tree):
    """Return the import statements for what is neither Python's own nor this project's."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0):
            tops = {name.partition(".")[0] for name in modules(node)}
            if tops - OWN - sys.stdlib_module_names:
                found.add(ast.unparse(node))
    return found


@cache
def imports_of(script):
    """Return the import statements of a script, the modules that it reaches and its notebooks."""
    pending, seen, found = [script], set(), set()
    while pending:
        path = pending.pop()
        if path in seen:
            continue
        seen.add(path)
        tree = ast.parse(path.read_text())
        found |= statements(tree)
        pending += [file for node in ast.walk(tree) for file in own_files(node)]
    if script.stem == "run_notebook":
        for notebook in ROOT.glob("notebooks/*.ipynb"):
            cells = json.loads(notebook.read_text())["cells"]
            code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
            found |= statements(ast.parse("\n".join(code)))
    return frozenset(found)


def top_level(statement):
    """Return the name of the package that an import statement takes from."""
    (name, *_) = modules(ast.parse(statement).body[0])
    return Path(name.replace(".", "/")).parts[0]
