"""Train or resume one arm on one fold of one task, and validate it.

nnU-Net's own fold folder is not an output of the rule, since Snakemake deletes the outputs of a
failed job.
"""

import signal
import sys
from pathlib import Path

from workflow_scripts.common.console import redirect
from workflow_scripts.study.settings import RunSettings
from workflow_scripts.study.specification import RunSpec
from workflow_scripts.training.fold_training import Files, train_fold
from workflow_scripts.training.preemption import minutes_left

if __name__ == "__main__":
    redirect(snakemake.log[0])
    # A scheduler's SIGTERM then runs `finally` and `except` blocks like any other exit.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    params = snakemake.params
    train_fold(
        RunSpec(**params.run, parameters=params.parameters),
        RunSettings.of(params.training, params.energy, params.mirroring, snakemake.threads),
        Files(
            results=Path(params.results),
            plans=Path(snakemake.input.plans),
            splits=Path(snakemake.input.splits),
            outputs={name: Path(path) for name, path in snakemake.output.items()},
        ),
        stop_after_minutes=minutes_left(asked=snakemake.resources.get("runtime")),
    )
