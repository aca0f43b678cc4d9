"""The locks, and the conda environments and the image that match them."""

import importlib.metadata
import re
from functools import cache

import pytest
import yaml

from helpers.environments import (
    ENVIRONMENTS,
    environment_pins,
    imports_of,
    pins,
    rules,
    top_level,
)
from helpers.tree import ROOT

PAGE = (ROOT / "docs/how-to/environments.md").read_text()
RULES = rules()
UNIMPORTED = {
    "ipykernel": "runs the notebooks",
    "jinja2": "pandas writes LaTeX tables with it",
    "tinycss2": "nbconvert needs it through an extra of bleach, and conda knows no extras",
    "torchvision": "nnU-Net's networks import it through timm, and it must fit torch",
}


def requirements(name):
    lines = (ROOT / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


distributions = cache(importlib.metadata.packages_distributions)  # slow: reads all file lists


def package_of(statement):
    """Return the PyPI name of the package from which a statement imports."""
    (name,) = set(distributions()[top_level(statement)])
    return name.lower().replace("_", "-")


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
    assert set(environment) == {"channels", "dependencies"}
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    locked = pins("requirements.lock")
    conda, pip = environment_pins(path)
    for package, version in [*conda.items(), *pip.items()]:
        assert locked[package] == {version}
    assert conda.keys() & pip.keys() == set()


def test_environments_that_conda_fills_need_no_pip():
    """If there is a pin file, Snakemake reads it alone, and it lists none of pip's packages."""
    for path in ENVIRONMENTS:
        conda, pip = environment_pins(path)
        assert not (conda and pip), path


def test_every_rule_with_a_script_has_an_environment():
    assert {rule.environment for rule in RULES.values()} == set(ENVIRONMENTS)


@pytest.mark.parametrize("name", RULES)
def test_environment_declares_what_the_rule_imports(name):
    conda, pip = environment_pins(RULES[name].environment)
    undeclared = {
        statement
        for statement in imports_of(RULES[name].script)
        if package_of(statement) not in {*conda, *pip}
    }
    assert undeclared == set()


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_environment_declares_nothing_that_no_rule_imports(path):
    conda, pip = environment_pins(path)
    scripts = [rule.script for rule in RULES.values() if rule.environment == path]
    imported = {package_of(statement) for script in scripts for statement in imports_of(script)}
    assert {*conda, *pip} <= {*imported, *UNIMPORTED}


def test_requirements_name_what_the_rules_import():
    asked = {line.partition("==")[0] for line in requirements("requirements.in")}
    for rule in RULES.values():
        assert {package_of(statement) for statement in imports_of(rule.script)} <= asked


def test_the_lock_for_another_build_of_torch_lacks_the_cuda_libraries_alone():
    """Compare the command of docs/how-to/environments.md with what the installed torch requires."""
    (pattern,) = re.findall(r"^grep -vE '(.+)' requirements\.lock", PAGE, re.M)
    dropped = {name for name in pins("requirements.lock") if re.search(pattern, name)}
    brought = {
        re.match(r"[\w-]+", line).group()
        for line in importlib.metadata.requires("torch")
        if line.startswith(("cuda-", "nvidia-"))
    }
    assert brought <= dropped
    assert "nvidia-ml-py" not in dropped
    # Torch requires extras of the toolkit, which resolve to the toolkit's parts one level down.
    assert all(name.startswith(("cuda-", "nvidia-")) for name in dropped)


def test_the_page_names_files_that_exist():
    for target in re.findall(r"\]\((?!https:)([^)#]+)", PAGE):
        assert (ROOT / "docs/how-to" / target).exists(), target
    for path in ENVIRONMENTS:
        assert f"`{path.name}`" in PAGE
