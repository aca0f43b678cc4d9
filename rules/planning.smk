"""
This part of the workflow plans and preprocesses a task with nnU-Net and splits its cases.

REQUIRED INPUTS:

    resources/nnUNet_raw/{dataset}/dataset.json

OUTPUTS, in resources/nnUNet_preprocessed/{dataset}/:

    dataset_fingerprint.json
    {plans}.json                      nnU-Net's plans; {plans}_{digest}.json with the study's overrides
    {data_identifier}.manifest.json   the cases in {data_identifier}/
    splits_final.json                 nnU-Net's five folds

STEPS: fingerprint_task, plan_task, override_plans, preprocess_task, write_splits
"""


rule fingerprint_task:
    input:
        dataset=f"{RAW}/{{dataset}}/dataset.json",
    output:
        fingerprint=f"{PREPROCESSED}/{{dataset}}/dataset_fingerprint.json",
    log:
        "logs/fingerprint_task/{dataset}.log",
    conda:
        "../envs/nnunet.yaml"
    threads: cores_for_data(8)
    resources:
        **JOBS.of("fingerprint_task"),
    message:
        "Extracting the fingerprint of {wildcards.dataset}"
    script:
        "../workflow_scripts/planning/fingerprint_task.py"


rule plan_task:
    input:
        fingerprint=f"{PREPROCESSED}/{{dataset}}/dataset_fingerprint.json",
    output:
        plans=f"{PREPROCESSED}/{{dataset}}/{{plans}}.json",
    log:
        "logs/plan_task/{dataset}_{plans}.log",
    wildcard_constraints:
        plans=STUDY.base_plans,
    localrule: True
    conda:
        "../envs/nnunet.yaml"
    params:
        planner=config["planning"]["planner"],
        gpu_memory_target_gb=config["planning"]["gpu_memory_target_gb"],
    message:
        "Planning {wildcards.dataset}: {wildcards.plans}"
    script:
        "../workflow_scripts/planning/plan_task.py"


rule override_plans:
    input:
        plans=f"{PREPROCESSED}/{{dataset}}/{STUDY.base_plans}.json",
    output:
        plans=f"{PREPROCESSED}/{{dataset}}/{STUDY.base_plans}_{{digest}}.json",
    log:
        f"logs/override_plans/{{dataset}}_{STUDY.base_plans}_{{digest}}.log",
    wildcard_constraints:
        digest="[0-9a-f]{8}",
    localrule: True
    conda:
        "../envs/nnunet.yaml"
    params:
        configuration=STUDY.configuration,
        overrides=lambda wildcards: STUDY.overrides(STUDY.task_of[wildcards.dataset]),
    message:
        "Applying the overrides of the configuration to the plans of {wildcards.dataset}"
    script:
        "../workflow_scripts/planning/override_plans.py"


rule preprocess_task:
    input:
        plans=f"{PREPROCESSED}/{{dataset}}/{STUDY.base_plans}.json",
    output:
        manifest=f"{PREPROCESSED}/{{dataset}}/{STUDY.data_identifier}.manifest.json",
    log:
        f"logs/preprocess_task/{{dataset}}_{STUDY.data_identifier}.log",
    conda:
        "../envs/nnunet.yaml"
    threads: cores_for_data(8)
    resources:
        **JOBS.of("preprocess_task"),
    params:
        plans=STUDY.base_plans,
        configuration=STUDY.configuration,
    message:
        "Preprocessing {wildcards.dataset}"
    script:
        "../workflow_scripts/planning/preprocess_task.py"


rule write_splits:
    input:
        dataset=f"{RAW}/{{dataset}}/dataset.json",
    output:
        splits=f"{PREPROCESSED}/{{dataset}}/splits_final.json",
    log:
        "logs/write_splits/{dataset}.log",
    localrule: True
    conda:
        "../envs/nnunet.yaml"
    message:
        "Writing the folds of {wildcards.dataset}"
    script:
        "../workflow_scripts/planning/write_splits.py"
