"""Plan a task with one of nnU-Net's experiment planners."""

from workflow_scripts.common import nnunet_setup
from workflow_scripts.common.console import redirect


def plan_task(dataset: str, planner: str, plans: str, gpu_memory_target_gb: float | None) -> None:
    """Write nnU-Net's plans for a dataset.

    Args:
        dataset: name of nnU-Net's dataset folder.
        planner: class name of one of nnU-Net's experiment planners.
        plans: name of the plans and of their file.
        gpu_memory_target_gb: memory that the planner may use; None for the planner's own target.
    """
    nnunet_setup.configure(processes=1)
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiments

    plan_experiments(
        [nnunet_setup.dataset_number(dataset)],
        planner,
        gpu_memory_target_in_gb=gpu_memory_target_gb,
        overwrite_plans_name=plans,
    )


if __name__ == "__main__":
    redirect(snakemake.log[0])
    plan_task(
        dataset=snakemake.wildcards.dataset,
        planner=snakemake.params.planner,
        plans=snakemake.wildcards.plans,
        gpu_memory_target_gb=snakemake.params.gpu_memory_target_gb,
    )
