"""Plan a task with one of nnU-Net's experiment planners."""

from typing import Any

from workflow_scripts.common import nnunet_setup
from workflow_scripts.common.console import redirect
from workflow_scripts.common.files import read_json, write_json


def plan_task(dataset: str, planner: str, plans: str, gpu_memory_target_gb: float | None) -> None:
    """Write nnU-Net's plans for a dataset, with preprocessed data of their own.

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
    file = nnunet_setup.PREPROCESSED / dataset / f"{plans}.json"
    write_json(name_data(read_json(file)), file)


def name_data(plans: dict[str, Any]) -> dict[str, Any]:
    """Return nnU-Net's plans, changed in place so that the data have their name.

    The planners of residual encoders name those of the plain U-Net, whose folder nnU-Net deletes
    when it preprocesses them again.
    """
    for name, configuration in plans["configurations"].items():
        if "data_identifier" in configuration:
            configuration["data_identifier"] = f"{plans['plans_name']}_{name}"
    return plans


if __name__ == "__main__":
    redirect(snakemake.log[0])
    plan_task(
        dataset=snakemake.wildcards.dataset,
        planner=snakemake.params.planner,
        plans=snakemake.wildcards.plans,
        gpu_memory_target_gb=snakemake.params.gpu_memory_target_gb,
    )
