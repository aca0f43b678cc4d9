"""
This part of the workflow converts the data of a task to nnU-Net's raw format.

REQUIRED INPUTS:

    config/tables/datasets.tsv (read as MSD in common.smk), and `archives`/{task}.tar or a network;
    for the demo task, the ICBM 2009 template in the package nilearn;
    for an own task, its folder in the configuration. It is only read and deliberately not an input:
    an imported task no longer needs it (except for the images, if they are links)

The data of a task are converted or imported only once. The rules for that do not apply to imported tasks, so
that no change of their code deletes a dataset.json whose source may be gone (`not_converted`, `not_imported`).

OUTPUTS:

    resources/archives/{task}.tar                 checksum verified; a link if found in `archives`
    resources/msd/{task}/                         unpacked and checked, removed after conversion
    resources/nnUNet_raw/{dataset}/dataset.json   with imagesTr/ and labelsTr/ beside it

STEPS: download_task or make_demo_task, extract_task, convert_task; for an own task, import_own_task
"""


rule download_task:
    output:
        archive="resources/archives/{task}.tar",
    log:
        "logs/download_task/{task}.log",
    wildcard_constraints:
        task="|".join(MSD),
    # An interrupted download is retried. For a file in `archives`, a retry would not help.
    retries: 0 if config["archives"] else 2
    localrule: True
    conda:
        "../envs/nnunet.yaml"
    params:
        url=lambda wildcards: MSD[wildcards.task]["url"],
        md5=lambda wildcards: MSD[wildcards.task]["md5"],
    message:
        "Fetching the archive of {wildcards.task}"
    script:
        "../workflow_scripts/data/download_task.py"


rule make_demo_task:
    output:
        archive=f"resources/archives/{DEMO_TASK}.tar",
    log:
        f"logs/make_demo_task/{DEMO_TASK}.log",
    localrule: True
    conda:
        "../envs/nnunet.yaml"
    params:
        cases=config["demo_task"]["cases"],
        seed=config["demo_task"]["seed"],
    message:
        "Making the demo task"
    script:
        "../workflow_scripts/data/make_demo_task.py"


rule extract_task:
    input:
        # Identified by its checksum, so copying or touching an archive has no effect.
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
        **JOBS.of("extract_task"),
    params:
        md5=lambda wildcards: MSD.get(wildcards.task, {}).get("md5"),
    message:
        "Unpacking and checking {wildcards.task}"
    script:
        "../workflow_scripts/data/extract_task.py"


rule convert_task:
    input:
        folder=lambda wildcards: f"resources/msd/{STUDY.task_of[wildcards.dataset]}",
    output:
        dataset=f"{RAW}/{{dataset}}/dataset.json",
    log:
        "logs/convert_task/{dataset}.log",
    wildcard_constraints:
        dataset="|".join(not_converted([*MSD, DEMO_TASK], RAW, config["archives"])) or "(?!)",
    conda:
        "../envs/nnunet.yaml"
    threads: cores_for_data(4)
    resources:
        **JOBS.of("convert_task"),
    message:
        "Converting {wildcards.dataset} for nnU-Net"
    script:
        "../workflow_scripts/data/convert_task.py"


rule import_own_task:
    output:
        dataset=f"{RAW}/{{dataset}}/dataset.json",
    log:
        "logs/import_own_task/{dataset}.log",
    wildcard_constraints:
        dataset="|".join(not_imported(config["own_tasks"], RAW)) or "(?!)",
    conda:
        "../envs/nnunet.yaml"
    threads: 4
    resources:
        **JOBS.of("import_own_task"),
    params:
        task=lambda wildcards: STUDY.task_of[wildcards.dataset],
        register=shipped("config/published/journal_datasets.yaml"),
    message:
        "Checking and importing {wildcards.dataset}"
    script:
        "../workflow_scripts/data/import_own_task.py"
