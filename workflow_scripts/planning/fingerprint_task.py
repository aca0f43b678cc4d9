"""Extract the dataset fingerprint that nnU-Net plans from."""

from workflow_scripts.common import nnunet_setup
from workflow_scripts.common.console import redirect
from workflow_scripts.common.worker_pools import watched_pools


def fingerprint_task(dataset: str, processes: int) -> None:
    """Check the raw dataset as nnU-Net does and write its `dataset_fingerprint.json`."""
    nnunet_setup.configure(processes)
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset

    number = nnunet_setup.dataset_number(dataset)
    with nnunet_setup.pools_on(processes), watched_pools("reads the cases"):
        extract_fingerprint_dataset(number, num_processes=processes, check_dataset_integrity=True)


if __name__ == "__main__":
    redirect(snakemake.log[0])
    fingerprint_task(dataset=snakemake.wildcards.dataset, processes=snakemake.threads)
