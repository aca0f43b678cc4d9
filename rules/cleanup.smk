"""
This part of the workflow frees disk space. The files that it removes can be made again, and no
result needs them.

REQUIRED INPUTS:

    none; missing files are skipped

OUTPUTS: none. The rules remove

    clean_preprocessed   in resources/nnUNet_preprocessed/{dataset}/: the arrays, their manifest and
                         gt_segmentations/ of the study's tasks; refused while a training needs them
    clean_archives       resources/archives/{task}.tar of the study's tasks that have been converted
"""


rule clean_preprocessed:
    log:
        f"logs/clean_preprocessed/{STUDY.name}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        folders={task: STUDY.preprocessed(task) for task in STUDY.tasks},
        plans=STUDY.base_plans,
        configuration=STUDY.configuration,
    message:
        "Removing the preprocessed data of the study's tasks"
    script:
        "../workflow_scripts/cleanup/clean_preprocessed.py"


rule clean_archives:
    log:
        f"logs/clean_archives/{STUDY.name}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        archives={
            task: f"resources/archives/{task}.tar"
            for task in STUDY.tasks
            if task not in config["own_tasks"]
        },
        converted={task: STUDY.raw(task) for task in STUDY.tasks},
    message:
        "Removing the archives of the study's tasks"
    script:
        "../workflow_scripts/cleanup/clean_archives.py"
