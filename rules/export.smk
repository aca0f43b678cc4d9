"""
This part of the workflow writes every trained model, except those of `scale_space`, for nnU-Net alone:
`snakemake export_models`. `snakemake bake` does it for `scale_space`.

REQUIRED INPUTS:

    results/{study}/runs/{task}/{arm}/fold_{fold}{seed_suffix}/run.json, and the folders that they name

OUTPUTS, in results/{study}/models/{arm}{seed_suffix}/{dataset}/:

    {dataset}__nnUNetTrainer__{plans}__{configuration}.zip   for nnUNetv2_install_pretrained_model_from_zip
    nnUNetTrainer__{plans}__{configuration}/                 the same as nnU-Net's model folder, with card.md
"""

from workflow_scripts.study.scale_grid import TRAINER as SCALE_SPACE_TRAINER
from workflow_scripts.study.tasks import MSD_CITATION

MODELS = f"{RESULTS}/models/{{arm}}{{seed_suffix}}/{{dataset}}"
MODEL = f"nnUNetTrainer__{{plans}}__{STUDY.configuration}"


rule export_model:
    input:
        runs=lambda wildcards: expand(
            f"{RUN}/run.json",
            task=STUDY.task_of[wildcards.dataset],
            arm=wildcards.arm,
            fold=config["folds"],
            seed_suffix=wildcards.seed_suffix,
        ),
    output:
        archive=f"{MODELS}/{{dataset}}__{MODEL}.zip",
        plans=f"{MODELS}/{MODEL}/plans.json",
        card=f"{MODELS}/{MODEL}/card.md",
        checkpoints=expand(
            f"{MODELS}/{MODEL}/fold_{{fold}}/checkpoint_final.pth",
            fold=config["folds"],
            allow_missing=True,
        ),
    log:
        f"logs/export_model/{STUDY.name}_{{arm}}{{seed_suffix}}_{{dataset}}_{{plans}}.log",
    wildcard_constraints:
        plans=r"[^/]+",
    conda:
        "../envs/nnunet.yaml"
    resources:
        **JOBS.of("export_model"),
    params:
        registered=lambda wildcards: (
            {"licence": MSD[STUDY.task_of[wildcards.dataset]]["licence"], "citation": MSD_CITATION}
            if STUDY.task_of[wildcards.dataset] in MSD
            else {}
        ),
        data_set=lambda wildcards: (
            config["own_tasks"].get(STUDY.task_of[wildcards.dataset], {}).get("data_set")
        ),
        register=shipped("config/published/journal_datasets.yaml"),
    message:
        "Exporting {wildcards.arm}{wildcards.seed_suffix}, {wildcards.dataset}"
    script:
        "../workflow_scripts/export/export_model.py"


EXPORTS = [
    f"{MODELS}/{{dataset}}__{MODEL}.zip".format(
        arm=arm,
        seed_suffix=STUDY.seed_suffix(seed),
        dataset=STUDY.dataset_of[task],
        plans=STUDY.plans_name(task),
    )
    for task in STUDY.tasks
    for arm, chosen in config["arms"].items()
    if chosen["trainer"] != SCALE_SPACE_TRAINER
    for seed in STUDY.seeds
]
