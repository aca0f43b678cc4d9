"""A copy of the workflow's own files in an empty folder, and Snakemake started in it."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
GREETING = "Using workflow specific profile profiles/default"


def copy_tree(target):
    """Copy what a clone would have, and files that are not committed yet, to `target`."""
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


def write_config(folder, name, config, **changes):
    """Write a study's configuration with some keys of any section replaced; return its path."""
    merged = {**config}
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(config.get(key), dict)
        merged[key] = {**config[key], **value} if nested else value
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(merged, sort_keys=False))
    return path.name


def command(*arguments, python=sys.executable):
    return [python, "-m", "snakemake", *map(str, arguments)]


def snakemake(folder, *arguments, env=None, timeout=600, python=sys.executable):
    """Run Snakemake in `folder` to its end; the result has returncode, stdout and stderr.

    At the timeout the jobs that it started end with it.
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
    """Start Snakemake in `folder` as the leader of a process group of its own."""
    return subprocess.Popen(
        command(*arguments, python=python),
        cwd=folder,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def said(stderr):
    """Return the lines on standard error but the one that greets every run."""
    return [line for line in stderr.splitlines() if not line.startswith(GREETING)]


def plan(folder, *arguments, env=None):
    """Dry-run in `folder` and return (jobs by rule, the whole text)."""
    run = snakemake(folder, "-n", *arguments, env=env)
    assert run.returncode == 0, run.stdout + run.stderr
    if "Nothing to be done" in run.stdout:
        return {}, run.stdout
    table = run.stdout.partition("Job stats:")[2].partition("total")[0]
    return {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", table, re.M)}, run.stdout


def trainings(text):
    """Return the set of (task, arm, fold) that a dry-run's text would train."""
    found = re.findall(r"Training (\w+), (\w+), fold (\d)$", text, re.M)
    return {(task, arm, int(fold)) for task, arm, fold in found}
