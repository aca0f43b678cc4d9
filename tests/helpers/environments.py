"""Imports of the rules and packages of locks and environments, read without running a rule."""

import ast
import json
import re
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import yaml

from helpers.tree import ROOT, dry_run
from workflow_scripts.study.script_inputs import imported_modules, python_source

ENVIRONMENTS = sorted(ROOT.glob("envs/*.yaml"))
OWN = {"__future__", "snakemake", "workflow_scripts"}
PROBE = """
include: "{snakefile}"
import json

def place(rule, path):
    path = path and path.replace("{{params.script}}", str(rule.params.get("script")))
    return path and f"{{rule.basedir.get_path_or_uri(False)}}/{{path}}"

found = {{
    each.name: {{
        "script": place(each, each.script),
        "environment": place(each, each.conda_env),
        "resources": sorted(each.resources),
        "is_local": each.name in workflow._localrules,
        "logs": list(map(str, each.log)),
    }}
    for each in workflow.rules
}}
Path("{output}").write_text(json.dumps(found))
"""


@cache
def every_rule():
    """Return all rules as Snakemake reads them, by name."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        output = folder / "rules.json"
        probe = PROBE.format(snakefile=ROOT / "Snakefile", output=output)
        (folder / "probe.smk").write_text(probe)
        run = dry_run(folder, "-s", folder / "probe.smk")
        assert output.exists(), run.stdout + run.stderr
        found = json.loads(output.read_text())
    for rule in found.values():
        for key in ("script", "environment"):
            rule[key] = rule[key] and Path(rule[key]).resolve()
    return {name: SimpleNamespace(**rule) for name, rule in found.items()}


def rules():
    """Return the rules that have a script, by name."""
    return {name: rule for name, rule in every_rule().items() if rule.script}


def pins(name):
    """Read a lock: package -> set of versions (two if Python versions need different ones)."""
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


def names_of(node):
    """Return the dotted module names of an import statement."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []


def statements(tree):
    """Return the import statements for modules outside the standard library and this project."""
    found = set()
    for node in ast.walk(tree):
        tops = {name.partition(".")[0] for name in names_of(node)}
        if tops - OWN - sys.stdlib_module_names:
            found.add(ast.unparse(node))
    return found


@cache
def imports_of(script):
    """Return the import statements of a script, the modules that it reaches and its notebooks."""
    found = set()
    sources = [script]
    if script.stem == "run_notebook":
        sources += sorted(ROOT.glob("notebooks/*.ipynb"))
    for source in sources:
        for path in (source, *imported_modules(source)):
            found |= statements(ast.parse(python_source(path)))
    return frozenset(found)


def top_level(statement):
    """Return the name of the package from which a statement imports."""
    (name, *_) = names_of(ast.parse(statement).body[0])
    return Path(name.replace(".", "/")).parts[0]
