"""
This part of the workflow brings a task's data into nnU-Net's raw format.

REQUIRED INPUTS:

    config/datasets.tsv (read as MSD in common.smk), and either `archives`/{task}.tar or a network;
    for the demo task the ICBM 2009 template that the package nilearn contains;
    for an own task its folder in the configuration, which is only read and on purpose no input: an
    imported task needs it no more (but for the images, if they are links)

OUTPUTS:

    resources/archives/{task}.tar                 checksum verified; a link if found in `archives`
    resources/msd/{task}/                         unpacked and checked, removed after conversion
    resources/nnUNet_raw/{dataset}/dataset.json   and beside it imagesTr/, labelsTr/

STEPS: download_task or make_demo_task, extract_task, convert_task; an own task: import_own_task
"""


rule download_task:
    output:
        archive="resources/archives/{task}.tar",
    log:
        "logs/download_task/{task}.log",
    wildcard_constraints:
        task="|".join(MSD),
    localrule: True
    conda:
        "../envs/nnunet.yaml"
    params:
        url=lambda wildcards: MSD[wildcards.task]["url"],
        md5=lambda wildcards: MSD[wildcards.task]["md5"],
    message:
        "Fetching the archive of {wildcards.task}"
    script:
        "../workflow_scripts/download_task.py"


rule make_demo_task:
    output:
        archive="resources/archives/Task99_BrainTissue.tar",
    log:
        "logs/make_demo_task/Task99_BrainTissue.log",
    localrule: True
    conda:
        "../envs/nnunet.yaml"
    params:
        cases=config["demo_task"]["cases"],
        seed=config["demo_task"]["seed"],
    message:
        "Making the demo task"
    script:
        "../workflow_scripts/make_demo_task.py"


rule extract_task:
    input:
        # What it holds is told by its checksum: an archive copied or touched is no other one.
        archive=lambda wildcards: (ancient if wildcards.task in MSD else str)(
            f"resources/archives/{wildcards.task}.tar"
        ),
    output:
        folder=temp(directory("resources/msd/{task}")),
    log:
        "logs/extract_task/{task}.log",
    conda:
        "../envs/nnunet.yaml"
    threads: 4
    resources:
        mem_mb=REQUESTS.memory_mb,
        runtime=REQUESTS.minutes,
        disk_mb=REQUESTS.disk_mb,
    params:
        md5=lambda wildcards: MSD.get(wildcards.task, {}).get("md5"),
    message:
        "Unpacking and checking {wildcards.task}"
    script:
        "../workflow_scripts/extract_task.py"


rule convert_task:
    input:
        folder=lambda wildcards: f"resources/msd/{TASK_OF[wildcards.dataset]}",
    output:
        dataset="resources/nnUNet_raw/{dataset}/dataset.json",
    log:
        "logs/convert_task/{dataset}.log",
    wildcard_constraints:
        dataset="|".join(DATASET_OF[task] for task in [*MSD, DEMO_TASK]),
    conda:
        "../envs/nnunet.yaml"
    threads: 4
    resources:
        mem_mb=REQUESTS.memory_mb,
        runtime=REQUESTS.minutes,
        disk_mb=REQUESTS.disk_mb,
    message:
        "Converting {wildcards.dataset} for nnU-Net"
    script:
        "../workflow_scripts/convert_task.py"


rule import_own_task:
    output:
        dataset="resources/nnUNet_raw/{dataset}/dataset.json",
    log:
        "logs/import_own_task/{dataset}.log",
    wildcard_constraints:
        dataset="|".join(DATASET_OF[task] for task in config["own_tasks"]) or "(?!)",
    conda:
        "../envs/nnunet.yaml"
    threads: 4
    resources:
        mem_mb=REQUESTS.memory_mb,
        runtime=REQUESTS.minutes,
        disk_mb=REQUESTS.disk_mb,
    params:
        task=lambda wildcards: TASK_OF[wildcards.dataset],
    message:
        "Checking and importing {wildcards.dataset}"
    script:
        "../workflow_scripts/import_own_task.py"
