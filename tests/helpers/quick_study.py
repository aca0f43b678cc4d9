"""Snakemake whose scripts run in processes that have the imports of a training already.

Most of the time of a tiny study goes into imports: 40 jobs, some of which start further processes.
Here a job is forked from Snakemake's own process, and the pools of nnU-Net are, too. Scripts, rules
and files are the same. Studies that test processes and environments use `tree.snakemake`.
"""

import multiprocessing.util
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from helpers.processes import PATIENCE, Forked, forked_pools
from helpers.tree import ROOT, forget_workflow, located


def quick_snakemake(folder, *arguments, env=None):
    """Run Snakemake on a study in `folder`, as `tree.snakemake` does, but faster."""
    words = located(folder, arguments)
    start_in = folder if (Path(folder) / "Snakefile").exists() else ROOT
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name, stream) for stream in ("out", "err")]
        process = Forked(_run, start_in, words, {**os.environ, **(env or {})}, output=tuple(files))
        try:
            process.wait(PATIENCE)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        out, err = (path.read_text() if path.exists() else "" for path in files)
    return subprocess.CompletedProcess(["snakemake", *words], process.returncode, out, err)


def _run(folder, arguments, environment):
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    forget_workflow()
    from snakemake.cli import main
    from snakemake.script import PythonScript

    PythonScript.execute_script = _fork
    main(arguments)


def _fork(script, path, edit=False):
    """Run a script of Snakemake in a fork of this process, instead of in a new Python."""
    pid = os.fork()
    if pid == 0:
        os._exit(_execute(path))
    _, status = os.waitpid(pid, 0)
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), path)


def _execute(path):
    """Run a script and end what it leaves, as Python does at exit; return the exit code."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    code = 1
    try:
        with forked_pools():
            runpy.run_path(path, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        sys.excepthook(*sys.exc_info())
    multiprocessing.util._exit_function()
    sys.stdout.flush()
    sys.stderr.flush()
    return code
