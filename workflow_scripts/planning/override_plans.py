"""Derive plans with a new name from nnU-Net's, with the study's patch, batch or features."""

from pathlib import Path

from workflow_scripts.common.console import redirect
from workflow_scripts.common.files import read_json, write_json
from workflow_scripts.planning.plan_overrides import override_plans

if __name__ == "__main__":
    redirect(snakemake.log[0])

    target = Path(snakemake.output.plans)
    write_json(
        override_plans(
            read_json(Path(snakemake.input.plans)),
            target.stem,
            snakemake.params.configuration,
            snakemake.params.overrides,
        ),
        target,
    )
