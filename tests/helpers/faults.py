"""Kill and resume a training of the tiny task repeatedly, and record what happened.

Run as a script with a file of calls; the records are written beside it. Each attempt is a forked
process: it shares the imports of this one, and nothing of earlier attempts.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from helpers.folds import train
from workflow_scripts.common import nnunet_setup

KILLS = [
    signal.SIGKILL,
    signal.SIGTERM,
    signal.SIGKILL,
    signal.SIGINT,
    signal.SIGTERM,
] * 2  # all ten at random moments


def start(call, die_at_border=False):
    """Fork a process that makes the call; return its PID."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    code = 1
    try:
        if die_at_border:
            _die_between_border_and_checkpoint()
        train(call)
        code = 0
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def _die_between_border_and_checkpoint():
    from workflow_scripts.trainers.curricula.resumable import ResumableTrainer

    save = ResumableTrainer.save_checkpoint

    def die(trainer, filename):
        stage_of, epoch = trainer.schedule().stage_of_epoch, trainer.current_epoch
        if "latest" in filename and stage_of(epoch) != stage_of(epoch + 1):
            os.kill(os.getpid(), signal.SIGKILL)
        save(trainer, filename)

    ResumableTrainer.save_checkpoint = die


def wait(pid, seconds=300):
    """Wait for the process; return its exit code, or minus the signal's number."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    raise TimeoutError(f"attempt {pid} did not end")


def setups(ledger):
    return ledger.read_text().count('"phase": "setup"') if ledger.exists() else 0


def wait_for_training(pid, ledger, before):
    """Wait until the attempt has begun to train."""
    deadline = time.monotonic() + 120
    while setups(ledger) == before:
        done, status = os.waitpid(pid, os.WNOHANG)
        assert not done, f"the attempt ended by itself: {status}"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def main(spec):
    """Train `whole` undisturbed, and `killed` with ten kills and one at a stage border."""
    nnunet_setup.RAW, nnunet_setup.PREPROCESSED = Path(spec["raw"]), Path(spec["preprocessed"])
    import pandas as pd

    from workflow_scripts.training import train_fold  # noqa: F401, for all attempts

    calls = spec["calls"]
    assert wait(start(calls["whole"])) == 0
    epoch = pd.read_csv(calls["whole"]["outputs"]["epochs"])["seconds"].mean()
    draw = random.Random(spec["seed"])
    call, ledger = calls["killed"], Path(spec["ledger"])
    for number in KILLS:
        before = setups(ledger)
        pid = start(call)
        wait_for_training(pid, ledger, before)
        moment = draw.uniform(0.05, 1.5) * epoch
        time.sleep(moment)
        os.killpg(pid, number) if number == signal.SIGTERM else os.kill(pid, number)
        report(signal.Signals(number).name, wait(pid), moment / epoch)
    report("SIGKILL between border and checkpoint", wait(start(call, die_at_border=True)), None)
    report("none", wait(start(call)), None)


def report(kind, code, moment):
    with Path(sys.argv[1]).with_suffix(".reports").open("a") as file:
        line = {"kind": kind, "code": code, "epochs_after_start": moment}
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
