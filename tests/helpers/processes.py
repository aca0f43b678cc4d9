"""Processes that start with the imports of a training, or of Snakemake, already done.

The imports take longer than most tests that need them. One process per test runner imports
everything; the others are forked from it, and share nothing else.
"""

import contextlib
import importlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(["helpers.preloaded"])
TESTS = Path(__file__).parents[1]
SEARCHED = os.pathsep.join([str(TESTS.parent), str(TESTS)])
"""`PYTHONPATH` of the server: Python 3.11 ignores the caller's search path there, and silently
preloads nothing."""

WITH_POOLS = (
    "nnunetv2.evaluation.evaluate_predictions",
    "nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor",
    "nnunetv2.experiment_planning.verify_dataset_integrity",
    "nnunetv2.preprocessing.preprocessors.default_preprocessor",
    "nnunetv2.training.nnUNetTrainer.nnUNetTrainer",
)
"""Modules of nnU-Net that spawn pools of processes."""

PATIENCE = 3600  # s; ends a run that hangs, not one on a slow machine


class Forked:
    """A function in its own process and process group, with the interface of `subprocess.Popen`."""

    def __init__(self, function, *arguments, output=None):
        """Call `function`; `output` is a path for standard output and error, or a pair of paths."""
        paths = output if isinstance(output, tuple) else (output, output)
        begin = function, arguments, paths, dict(os.environ)
        self._process = FORKING.Process(target=_begin, args=begin)
        with mock.patch.dict(os.environ, PYTHONPATH=SEARCHED):
            self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self):
        """Exit code, or minus the number of the signal that ended it; None while it runs."""
        return self._process.exitcode

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("forked process", timeout)
        return self.returncode

    def kill(self):
        self._process.kill()


def _begin(function, arguments, paths, environment):
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    # Otherwise it would inherit this start method; a job has the platform's default.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    for descriptor, path in enumerate(paths, start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    try:
        function(*arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


@contextlib.contextmanager
def forked_pools():
    """Let nnU-Net's pools fork their one worker; a spawned one would import nnU-Net for 5 s."""
    pools = SimpleNamespace(get_context=lambda method: SimpleNamespace(Pool=_forked_pool))
    with contextlib.ExitStack() as stack:
        for name in WITH_POOLS:
            module = importlib.import_module(name)
            stack.enter_context(mock.patch.object(module, "multiprocessing", pools))
        yield


def _forked_pool(processes):
    return multiprocessing.get_context("fork").Pool(1, _be_as_spawned)


def _be_as_spawned():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    import torch

    # OpenMP's other threads do not survive the fork, so waiting for them would never end.
    torch.set_num_threads(1)
    torch.set_num_threads = lambda number: None


def run_forked(command, env, capture_output, text):
    """Replace `subprocess.run` of `python -m MODULE SPEC` by a process that has the imports."""
    assert (capture_output, text, command[1]) == (True, True, "-m")
    path = Path(command[-1])
    outputs = path.with_suffix(".out"), path.with_suffix(".err")
    process = Forked(run_module, command[2:], Path.cwd(), dict(env), output=outputs)
    process.wait(PATIENCE)
    said = [output.read_text() for output in outputs]
    return subprocess.CompletedProcess(command, process.returncode, *said)


def start_forked(command, env, stdout, stderr, start_new_session=False):
    """Replace `subprocess.Popen` of `python -m MODULE ...` by a process that has the imports."""
    assert (command[1], stdout) == ("-m", stderr)
    return Forked(run_module, command[2:], Path.cwd(), dict(env), output=Path(stdout.name))


def run_module(words, folder, environment):
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = list(map(str, words))
    with contextlib.chdir(folder):
        runpy.run_module(words[0], run_name="__main__")
