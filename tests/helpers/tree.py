"""Run Snakemake on this workflow, with studies in the test's own folder."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from snakemake.utils import update_config

from helpers.processes import PATIENCE, Forked

ROOT = Path(__file__).resolve().parents[2]
TOOLS = {"bench", "gpu_check"}
OVERLAYS = {"budget_sweep_acdc": ["budget_sweep"]}
GREETING = "Using workflow specific profile "


def copy_tree(target):
    """Copy the files of a clone, and those that are not committed yet, to `target`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def config_path(name):
    """Return the path of a shipped configuration in the repository."""
    kind = "tools" if name in TOOLS else "studies"
    return f"config/{kind}/{name}.yaml"


def shipped_config(name):
    """Return a shipped configuration, merged with the one that it changes, if any."""
    merged = {}
    for part in (*OVERLAYS.get(name, ()), name):
        update_config(merged, yaml.safe_load((ROOT / config_path(part)).read_text()))
    return merged


def write_config(folder, name, config, **changes):
    """Write a study's configuration with some keys of any section replaced; return its path."""
    merged = {**config}
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(config.get(key), dict)
        merged[key] = {**config[key], **value} if nested else value
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(merged, sort_keys=False))
    return str(path)


def located(folder, arguments):
    """Return Snakemake's arguments with the study in `folder`, unless it is itself a clone."""
    if (Path(folder) / "Snakefile").exists():
        return list(map(str, arguments))
    return ["--directory", str(folder), *map(str, arguments)]


def command(*arguments, python=sys.executable):
    return [python, "-m", "snakemake", *map(str, arguments)]


def snakemake(folder, *arguments, env=None, timeout=PATIENCE, python=sys.executable):
    """Run Snakemake on a study in `folder`; the result has returncode, stdout and stderr.

    After `timeout` seconds, it is killed together with its jobs.
    """
    process = start(folder, *arguments, env=env, python=python)
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start(folder, *arguments, env=None, python=sys.executable):
    """Start Snakemake as the leader of its own process group."""
    return subprocess.Popen(
        command(*located(folder, arguments), python=python),
        cwd=folder if (Path(folder) / "Snakefile").exists() else ROOT,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def said(stderr):
    """Return the lines of standard error without the one that greets every run."""
    return [line for line in stderr.splitlines() if not line.startswith(GREETING)]


def dry_run(folder, *arguments):
    """Return the result of `snakemake -n` with these arguments, but faster than `snakemake`."""
    folder, arguments = Path(folder), ["-n", *arguments]
    start_in = folder if (folder / "Snakefile").exists() else ROOT
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name, stream) for stream in ("out", "err")]
        words = located(folder, arguments)
        process = Forked(_run, start_in, words, output=tuple(files))
        process.wait(120)
        out, err = (path.read_text() if path.exists() else "" for path in files)
    return subprocess.CompletedProcess(["snakemake", *words], process.returncode, out, err)


def _run(folder, arguments):
    os.chdir(folder)
    forget_workflow()
    from snakemake.cli import main

    main(arguments)


def forget_workflow():
    """Forget this clone's modules, which a forked process has imported: it may run another's."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "workflow_scripts"]:
        del sys.modules[name]


def plan(folder, *arguments):
    """Dry-run a study in `folder` and return (jobs by rule, the whole text)."""
    run = dry_run(folder, *arguments)
    assert run.returncode == 0, run.stdout + run.stderr
    if "Nothing to be done" in run.stdout:
        return {}, run.stdout
    table = run.stdout.partition("Job stats:")[2].partition("total")[0]
    return {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", table, re.M)}, run.stdout


def trainings(text):
    """Return the set of (task, arm, fold) that a dry run would train, from its text."""
    found = re.findall(r"Training (\w+), (\w+), fold (\d), seed \d+$", text, re.M)
    return {(task, arm, int(fold)) for task, arm, fold in found}
