"""Import a user's own dataset into nnU-Net's raw format; its folder is only read."""

from pathlib import Path

from workflow_scripts.common import nnunet_setup
from workflow_scripts.common.console import redirect
from workflow_scripts.data.conversion import import_own_task
from workflow_scripts.data.journal_datasets import check_registered

if __name__ == "__main__":
    redirect(snakemake.log[0])

    task = snakemake.params.task
    own = snakemake.config["own_tasks"][task]
    # Not from params, which would trigger a rerun: `check_own_tasks` handles a changed folder.
    cases = import_own_task(
        folder=own["folder"],
        target=Path(snakemake.output.dataset).parent,
        preprocessed=nnunet_setup.PREPROCESSED,
        task=task,
        threads=snakemake.threads,
        groups=own.get("groups"),
        check=lambda description: check_registered(
            description, own["data_set"], task, Path(snakemake.params.register)
        ),
    )
    print(f"{snakemake.wildcards.dataset}: {cases} cases imported.")
