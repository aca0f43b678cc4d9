"""
This part of the workflow plans and preprocesses a task with nnU-Net and splits its cases.

REQUIRED INPUTS:

    resources/nnUNet_raw/{dataset}/dataset.json

OUTPUTS, in resources/nnUNet_preprocessed/{dataset}/:

    dataset_fingerprint.json
    {plans}.json                      nnU-Net's plans; {plans}_{digest}.json with the study's overrides
    {data_identifier}.manifest.json   the cases that {data_identifier}/ holds
    splits_final.json                 nnU-Net's five folds

STEPS: fingerprint_task, plan_task, override_plans, preprocess_task, write_splits
"""


rule fingerprint_task:
    input:
        dataset="resources/nnUNet_raw/{dataset}/dataset.json",
    output:
        fingerprint="resources/nnUNet_preprocessed/{dataset}/dataset_fingerprint.json",
    log:
        "logs/fingerprint_task/{dataset}.log",
    conda:
        "../envs/nnunet.yaml"
    threads: 8
    resources:
        mem_mb=REQUESTS.memory_mb,
        runtime=REQUESTS.minutes,
        disk_mb=REQUESTS.disk_mb,
    message:
        "Extracting the fingerprint of {wildcards.dataset}"
    script:
        "../workflow_scripts/fingerprint_task.py"


rule plan_task:
    input:
        fingerprint="resources/nnUNet_preprocessed/{dataset}/dataset_fingerprint.json",
    output:
        plans="resources/nnUNet_preprocessed/{dataset}/{plans}.json",
    log:
        "logs/plan_task/{dataset}_{plans}.log",
    wildcard_constraints:
        plans=BASE_PLANS,
    localrule: True
    conda:
        "../envs/nnunet.yaml"
    params:
        planner=config["planning"]["planner"],
        gpu_memory_target_gb=config["planning"]["gpu_memory_target_gb"],
    message:
        "Planning {wildcards.dataset}: {wildcards.plans}"
    script:
        "../workflow_scripts/plan_task.py"


rule override_plans:
    input:
        plans=f"resources/nnUNet_preprocessed/{{dataset}}/{BASE_PLANS}.json",
    output:
        plans=f"resources/nnUNet_preprocessed/{{dataset}}/{BASE_PLANS}_{{digest}}.json",
    log:
        f"logs/override_plans/{{dataset}}_{BASE_PLANS}_{{digest}}.log",
    wildcard_constraints:
        digest="[0-9a-f]{8}",
    localrule: True
    conda:
        "../envs/nnunet.yaml"
    params:
        configuration=config["planning"]["configuration"],
        overrides=lambda wildcards: overrides(TASK_OF[wildcards.dataset]),
    message:
        "Changing the plans of {wildcards.dataset} as the configuration says"
    script:
        "../workflow_scripts/override_plans.py"


rule preprocess_task:
    input:
        plans=f"resources/nnUNet_preprocessed/{{dataset}}/{BASE_PLANS}.json",
    output:
        manifest=f"resources/nnUNet_preprocessed/{{dataset}}/{DATA_IDENTIFIER}.manifest.json",
    log:
        f"logs/preprocess_task/{{dataset}}_{DATA_IDENTIFIER}.log",
    conda:
        "../envs/nnunet.yaml"
    threads: 8
    resources:
        mem_mb=REQUESTS.memory_mb,
        runtime=REQUESTS.minutes,
        disk_mb=REQUESTS.disk_mb,
    params:
        plans=BASE_PLANS,
        configuration=config["planning"]["configuration"],
    message:
        "Preprocessing {wildcards.dataset}"
    script:
        "../workflow_scripts/preprocess_task.py"


rule write_splits:
    input:
        dataset="resources/nnUNet_raw/{dataset}/dataset.json",
    output:
        splits="resources/nnUNet_preprocessed/{dataset}/splits_final.json",
    log:
        "logs/write_splits/{dataset}.log",
    localrule: True
    conda:
        "../envs/nnunet.yaml"
    message:
        "Writing the folds of {wildcards.dataset}"
    script:
        "../workflow_scripts/write_splits.py"
