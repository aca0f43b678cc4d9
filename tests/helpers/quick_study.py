"""Snakemake whose scripts run in processes that have the imports of a training already.

Most of the time of a tiny study goes into imports: 40 jobs, some of which start further processes.
Here a job is forked from a process that has them, and the pools of nnU-Net are, too. That process
has one thread. Snakemake's own has several, and its forks may wait forever for another's lock.
Scripts, rules and files are the same. Studies that test processes and environments use
`tree.snakemake`.
"""

import multiprocessing.util
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from multiprocessing.connection import Client, Listener
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
    with (
        tempfile.TemporaryDirectory() as name,
        Listener(str(Path(name, "scripts"))) as listener,
    ):
        server = os.fork()
        if server == 0:
            _serve(listener)
        try:
            _run_snakemake(arguments, listener.address)
        finally:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)


def _run_snakemake(arguments, address):
    from snakemake.cli import main
    from snakemake.script import PythonScript

    def execute(script, path, edit=False):
        """Run a script of Snakemake in a fork of the server, instead of in a new Python."""
        with Client(address) as connection:
            connection.send((path, str(Path.cwd()), dict(os.environ)))
            try:
                code = connection.recv()
            except EOFError:
                code = -signal.SIGKILL
        if code:
            raise subprocess.CalledProcessError(code, path)

    PythonScript.execute_script = execute
    main(arguments)


def _serve(listener):
    """Fork a process for each script, which tells its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        with listener.accept() as connection:
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                path, folder, environment = connection.recv()
                os.environ.clear()
                os.environ.update(environment)
                os.chdir(folder)
                code = _execute(path)
                connection.send(code)
                os._exit(code)


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
