"""Every rule in its own conda environment, with a Snakemake installed on its own.

`CONDA_TESTS=folder` enables these tests; `conda` must be on the PATH. The folder keeps the
environments (several GB) for the next run. That conda's configuration decides where the packages
come from.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.environments import ENVIRONMENTS, environment_pins, imports_of, pins, rules
from helpers.tree import ROOT, copy_tree, snakemake

KEPT = os.environ.get("CONDA_TESTS")
RULES = rules()
RESULTS = "results/demo"
DEMO = [
    *("--sdm", "conda", "--cores", "2"),
    "--config",
    "folds=[0]",
    "demo_task={cases: 6, seed: 1}",
    "planning={overrides: {all: {patch_size: [16, 24, 16], features_per_stage: [4, 8, 8]}}}",
    "training={epochs: 3, iterations_per_epoch: 4, validation_iterations_per_epoch: 1}",
]
STUDY = ["--", "all", "budget_sweep"]
TARGETS = [*STUDY, "forecast"]  # made again once plans exist
IMPORT = """
import json, sys
failed = {}
for statement in json.loads(sys.argv[1]):
    try:
        exec(statement, {})
    except BaseException as error:
        failed[statement] = f"{type(error).__name__}: {error}"
print("RESULT", json.dumps(failed))
"""
LIST = """
import json, platform
from importlib.metadata import distributions
found = {
    item.name.lower().replace("_", "-"): (item.version, item.read_text("INSTALLER"))
    for item in distributions()
}
print("RESULT", json.dumps([platform.python_version(), found]))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not KEPT,
        reason="CONDA_TESTS is not set to a folder for the conda environments (several GB)",
    ),
]


def ask(python, code, *arguments):
    """Run `code` in an interpreter that sees only its own packages; return its result."""
    command = [str(python), "-I", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("RESULT ")[2])


def interpreter():
    """Return a Python for Snakemake, preferably of a different version than the environments'."""
    works = "import sys, venv, ensurepip; assert sys.version_info[:2] in ((3, 12), (3, 13))"
    for name in ("python3.13", "python3.12"):
        command = [name, "-c", works]
        if shutil.which(name) and not subprocess.run(command, capture_output=True).returncode:
            return name
    return sys.executable


@pytest.fixture(scope="session")
def lean():
    """A Python with Snakemake and its dependencies, set up as in docs/how-to/environments.md."""
    lock = ROOT / "requirements.lock"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    folder = Path(KEPT).absolute() / f"snakemake-{digest}"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([interpreter(), "-m", "venv", folder], check=True)
        install = [folder / "bin/pip", "install", "-q", "-c", lock, "snakemake[reports]"]
        subprocess.run(install, check=True)
        (folder / "complete").touch()
    return folder / "bin/python"


@pytest.fixture(scope="session")
def workflow(lean, tmp_path_factory):
    """A copy of the workflow with all its environments created.

    Attributes: `run(*arguments)`, which starts Snakemake, and `prefixes`, by environment file.
    """
    assert shutil.which("conda"), "CONDA_TESTS is set, but there is no conda on the PATH"
    folder = copy_tree(tmp_path_factory.mktemp("conda"))
    prefix = ["--conda-prefix", str(Path(KEPT).absolute() / "environments")]
    # Hide the Python that runs these tests, and unset the variables that hide the user's packages.
    env = {
        "PATH": os.pathsep.join([str(Path(shutil.which("conda")).parent), "/usr/bin", "/bin"]),
        "PIP_CONSTRAINT": str(ROOT / "requirements.lock"),
        **dict.fromkeys(("PYTHONNOUSERSITE", "PYTHONPATH", "VIRTUAL_ENV"), ""),
    }

    def run(*arguments, env=env, **changes):
        return snakemake(folder, *arguments, env=env | changes, python=str(lean), timeout=3000)

    made = run(*DEMO, *prefix, "--conda-create-envs-only", *TARGETS)
    assert made.returncode == 0, made.stdout + made.stderr
    listed = run(*DEMO, *prefix, "--list-conda-envs", *TARGETS)
    lines = [line.split("\t") for line in listed.stdout.splitlines()]
    prefixes = {folder / line[0]: Path(line[-1]) for line in lines if len(line) == 3}
    return SimpleNamespace(folder=folder, run=run, prefix=prefix, prefixes=prefixes)


def python_of(workflow, path):
    return workflow.prefixes[workflow.folder / path.relative_to(ROOT)] / "bin/python"


@pytest.fixture(scope="session")
def failed_imports(workflow):
    """Map each environment to the failing import statements of its rules, with their errors."""
    wanted = {
        path: sorted(
            {
                statement
                for rule in RULES.values()
                if rule.environment == path
                for statement in imports_of(rule.script)
            }
        )
        for path in ENVIRONMENTS
    }
    return {
        path: ask(python_of(workflow, path), IMPORT, json.dumps(statements))
        for path, statements in wanted.items()
    }


@pytest.fixture(scope="session")
def demo(workflow, tmp_path_factory):
    """The finished demo study, run by a user whose home is full of files that must not be used."""
    home = tmp_path_factory.mktemp("home")
    packages = home / ".local/lib/python3.11/site-packages"
    packages.mkdir(parents=True)
    for name in ("numpy", "pandas", "yaml"):
        (packages / f"{name}.py").write_text(f"raise ImportError('{name} of the user')")
    for name in ("python3", "workflow"):
        kernel = home / f".local/share/jupyter/kernels/{name}/kernel.json"
        kernel.parent.mkdir(parents=True)
        kernel.write_text('{"argv": ["false"], "display_name": "user", "language": "python"}')
    done = workflow.run(*DEMO, *workflow.prefix, *TARGETS, HOME=str(home))
    assert done.returncode == 0, done.stdout + done.stderr
    return workflow.folder / RESULTS


def test_snakemake_has_none_of_the_workflow_s_packages_beside_it(lean):
    _, installed = ask(lean, LIST)
    assert installed["snakemake"][0] in pins("requirements.lock")["snakemake"]
    assert installed.keys() & {"torch", "nnunetv2", "numpy", "pandas", "matplotlib"} == set()


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_an_environment_has_the_versions_of_the_lock(workflow, path):
    version, installed = ask(python_of(workflow, path), LIST)
    assert version.startswith("3.11.")
    conda, pip = environment_pins(path)
    assert {name: installed[name][0] for name in (*conda, *pip)} == {**conda, **pip}
    locked = pins("requirements.lock")
    for name, (found, installer) in installed.items():
        if installer.strip() == "pip":
            assert found in locked[name], name


@pytest.mark.parametrize("name", RULES)
def test_all_imports_of_a_rule_work_in_its_own_environment(failed_imports, name):
    failed = failed_imports[RULES[name].environment]
    assert {key: failed[key] for key in imports_of(RULES[name].script) & failed.keys()} == {}


def test_the_demo_runs_in_the_environments(workflow, demo):
    """Snakemake's Python has no torch, so a training's torch version is its environment's."""
    version, _ = ask(python_of(workflow, ROOT / "envs/nnunet.yaml"), LIST)
    records = [json.loads(path.read_text()) for path in demo.glob("runs/*/*/fold_0/run.json")]
    assert {record["arm"] for record in records} == {"constant", "progressive", "random"}
    for record in records:
        assert record["versions"]["python"] == version
        assert record["versions"]["torch"].partition("+")[0] in pins("requirements.lock")["torch"]
    for name in ("figures/budget.png", "forecast/forecast.md", "tables/comparison.md"):
        assert (demo / name).stat().st_size > 0


@pytest.mark.parametrize("name", ["results", "curricula"])
def test_a_notebook_s_kernel_is_the_environment_s(workflow, demo, name):
    version, _ = ask(python_of(workflow, ROOT / "envs/analysis.yaml"), LIST)
    metadata = json.loads((demo / f"notebooks/{name}.ipynb").read_text())["metadata"]
    assert metadata["language_info"]["version"] == version


def test_the_report_is_made(workflow, demo):
    done = workflow.run(*DEMO, *workflow.prefix, "--report", "report.zip", *TARGETS)
    assert done.returncode == 0, done.stdout + done.stderr
    names = zipfile.ZipFile(workflow.folder / "report.zip").namelist()
    assert any(name.endswith("report.html") for name in names)


def test_only_another_environment_runs_a_finished_study_again(workflow, demo):
    """As docs/explanation/training.md says about moving a study from conda to pip or back."""
    same = workflow.run(*DEMO, *workflow.prefix, "-n", *STUDY)
    assert "Nothing to be done" in same.stdout
    without = [argument for argument in DEMO if argument not in ("--sdm", "conda")]
    other = workflow.run(*without, "-n", *STUDY)
    assert "train_fold" in other.stdout
    triggers = ["--rerun-triggers", "mtime", "params", "input"]
    ignored = workflow.run(*without, "-n", *triggers, *STUDY)
    assert "Nothing to be done" in ignored.stdout
