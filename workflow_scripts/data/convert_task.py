"""Convert a checked MSD dataset to nnU-Net's raw format."""

from pathlib import Path

from workflow_scripts.common.console import redirect
from workflow_scripts.data.conversion import convert_task

if __name__ == "__main__":
    redirect(snakemake.log[0])
    cases = convert_task(
        source=snakemake.input.folder,
        target=str(Path(snakemake.output.dataset).parent),
        processes=snakemake.threads,
    )
    print(f"{snakemake.wildcards.dataset}: {cases} cases converted.")
