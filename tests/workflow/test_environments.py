"""The locks, and the conda environments that are in step with them."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = sorted(ROOT.glob("envs/*.yaml"))
RULE_FILES = [ROOT / "Snakefile", *sorted(ROOT.glob("rules/*.smk"))]


def pins(name):
    """Read a lock: package -> set of versions (two where Python versions need different ones)."""
    found = {}
    for line in (ROOT / name).read_text().splitlines():
        if line and not line.lstrip().startswith("#"):
            package, version = re.fullmatch(r"([a-z0-9.-]+)==(\S+)(?: ; .+)?", line).groups()
            found.setdefault(package, set()).add(version)
    return found


def requirements(name):
    lines = (ROOT / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("kind", ["requirements", "requirements-dev"])
def test_lock_holds_all_that_is_asked_for(kind):
    locked = pins(f"{kind}.lock")
    for requirement in requirements(f"{kind}.in"):
        package, _, version = requirement.partition("==")
        assert package in locked
        if version:
            assert locked[package] == {version}


def test_the_two_locks_agree():
    base, dev = pins("requirements.lock"), pins("requirements-dev.lock")
    assert {name: dev[name] for name in base.keys() & dev} == {
        name: base[name] for name in base.keys() & dev
    }


def test_locks_name_no_address():
    for path in ROOT.glob("requirements*"):
        assert "://" not in path.read_text()


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_environment_is_pinned_to_the_lock(path):
    environment = yaml.safe_load(path.read_text())
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    *conda, last = environment["dependencies"]
    pip = last["pip"] if isinstance(last, dict) else []
    conda += [] if isinstance(last, dict) else [last]
    assert conda[0] == "python=3.11"
    assert ("pip" in conda) == bool(pip)
    locked = pins("requirements.lock")
    for pin in [name for name in conda[1:] if name != "pip"]:
        package, version = re.fullmatch(r"([a-z0-9-]+)=([0-9][^=]*)", pin).groups()
        assert locked[package] == {version}
    for pin in pip:
        package, version = pin.split("==")
        assert locked[package] == {version}


@pytest.mark.parametrize("path", RULE_FILES, ids=lambda path: path.name)
def test_environments_of_rules_exist(path):
    named = re.findall(r"^\s+conda:\s+\"([^\"]+)\"", path.read_text(), flags=re.MULTILINE)
    for environment in named:
        assert (path.parent / environment).resolve() in ENVIRONMENTS
    assert len(named) == len(re.findall(r"^\s+conda:", path.read_text(), flags=re.MULTILINE))


def test_every_environment_is_used():
    used = "\n".join(path.read_text() for path in RULE_FILES)
    for path in ENVIRONMENTS:
        assert f"envs/{path.name}" in used


def test_ruff_and_mypy_target_the_oldest_python():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert settings["mypy"]["python_version"] == "3.11"
    assert settings["ruff"]["target-version"] == "py311"
