"""The faults: each starts a study on Slurm, disturbs its training, and waits for it to end.

A fault's docstring is the title of its row in the table of docs/results/reliability.md. Each takes
the folder, the study's name and the seconds per iteration. It returns the study and Slurm's
report.
"""

import math
import os
import signal
import time

from helpers.slurm_lab import (
    CONFIG,
    EPOCHS,
    Study,
    restart_slurmctld,
    slurm,
    state_of,
    wait_for_state,
)

LONG_SECONDS = 130
"""Approximate length of a training that must outlast a time limit of a minute or two."""


def finished(study):
    assert study.finish() == 0, study.said[-6000:]
    return study


def long_training(iteration_seconds):
    """Return the `training` section for a training of about `LONG_SECONDS` on this machine."""
    iterations = math.ceil(LONG_SECONDS / iteration_seconds / EPOCHS)
    return {**CONFIG["training"], "iterations_per_epoch": iterations}


def cancelled(folder, name, iteration_seconds):
    """`scancel` of a running training."""
    study = Study(folder, name).start()
    job = study.wait_for_epochs()
    slurm("scancel", job)
    state = wait_for_state(job, "CANCELLED")
    return finished(study), f"Slurm: {state}, submitted again"


def killed(folder, name, iteration_seconds):
    """`kill -9` of the training's process."""
    study = Study(folder, name).start()
    job = study.wait_for_epochs()
    study.wait_for_checkpoint()
    os.kill(study.pid_of_training(), signal.SIGKILL)
    state = wait_for_state(job, "FAILED")
    return finished(study), f"Slurm: {state}, resubmitted with 1.5 times the memory"


def starved(folder, name, iteration_seconds):
    """more memory used than requested."""
    study = Study(folder, name, extra=("--set-resources", "train_fold:mem_mb=1600"))
    study.start("--preemptible-retries", "0")
    study.finish()
    assert study.process.returncode != 0, "1600 MB were enough"
    study.extra = ()
    return finished(study.start()), "Slurm: FAILED; restarted by hand with the usual memory"


def timed_out(folder, name, iteration_seconds):
    """a job over its time limit, which was shortened while it ran."""
    study = Study(folder, name, {"training": long_training(iteration_seconds)}).start()
    job = study.wait_for_epochs(1)
    slurm("scontrol", "update", f"JobId={job}", "TimeLimit=1")
    state = wait_for_state(job, "TIMEOUT")
    return finished(study), f"Slurm: {state}, submitted again"


def sliced(folder, name, iteration_seconds):
    """a training longer than the partition's limit (2 min)."""
    changes = {
        "training": long_training(iteration_seconds),
        "cluster": {"max_runtime_minutes": 2},
    }
    study = finished(Study(folder, name, changes).start())
    jobs = [attempt["job"] for attempt in study.attempts()]
    states = [state_of(job) for job in jobs]
    return study, f"Slurm: {', '.join(states)}; each slice ended by itself before the limit"


def requeued(folder, name, iteration_seconds):
    """requeued by Slurm, as after preemption or a node's failure."""
    study = Study(folder, name).start()
    job = study.wait_for_epochs()
    slurm("scontrol", "requeue", job)
    state = wait_for_state(job, "PENDING")
    return finished(study), f"Slurm: {state}, then the same job again"


def beheaded(folder, name, iteration_seconds):
    """`kill -9` of Snakemake, restarted while its job is running."""
    study = Study(folder, name).start()
    job = study.wait_for_epochs(1)
    study.kill_head()
    study.unlock()
    study.start()
    time.sleep(20)
    running = state_of(job)
    finished(study)
    return study, f"Slurm: the first job {running} beside the second, which waited for its lease"


def restarted(folder, name, iteration_seconds):
    """`slurmctld` restarted during the study."""
    study = Study(folder, name).start()
    study.wait_for_epochs(1)
    began = time.monotonic()
    restart_slurmctld(3)
    away = time.monotonic() - began
    return finished(study), f"down for {away:.0f} s; all studies of this table continued"


def undisturbed(folder, name, iteration_seconds):
    """none: two simultaneous studies in one folder."""
    first = Study(folder, f"{name}_1").start()
    time.sleep(10)  # studies that end at the same time collide on Snakemake's locks
    second = Study(folder, f"{name}_2").start()
    finished(first)
    return finished(second), "both complete"


FAULTS = {
    "two_at_once": undisturbed,
    "sliced": sliced,
    "timed_out": timed_out,
    "requeued": requeued,
    "cancelled": cancelled,
    "killed": killed,
    "starved": starved,
    "beheaded": beheaded,
    "restarted": restarted,
}
