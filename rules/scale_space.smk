"""
This part of the workflow bakes scale-space networks into ordinary nnU-Net models, and measures
accuracy and cost of inference by scale factor: `snakemake bake`, `snakemake scale_space`.

REQUIRED INPUTS, of a study with an arm of the trainer nnUNetTrainerScaleSpace:

    results/{study}/runs/{task}/{arm}/fold_{fold}/run.json, and the checkpoints that it names
    resources/nnUNet_preprocessed/{dataset}/: preprocessed cases, splits_final.json

OUTPUTS, in results/{study}/:

    baked/{arm}/scale_{scale}/{dataset}/…            nnU-Net's model folder, with trainers/ for
                                                     nnUNet_extTrainer
    scales/{task}/{arm}/fold_{fold}/                 Dice and cost at each evaluated scale factor, and
                                                     Dice of weights in networks of another one

STEPS: bake_model, evaluate_scale and evaluate_transfer; scale_tables.smk goes on from here
"""

from scale_study import (
    BAKED_TRAINER,
    CHOSEN,
    PLANNED,
    baked_plans,
    evaluations,
    transfers,
    wanted_models,
)

BAKED_MODEL = (
    "results/{study}/baked/{arm}/scale_{scale}/{dataset}/"
    f"{BAKED_TRAINER}__{{plans}}__{PLANNING['configuration']}"
)


rule bake_model:
    input:
        runs=lambda wildcards: expand(
            "results/{{study}}/runs/{task}/{{arm}}/fold_{fold}/run.json",
            task=TASK_OF[wildcards.dataset],
            fold=config["folds"],
        ),
        choice=branch(
            lambda wildcards: wildcards.scale == CHOSEN,
            then="results/{study}/tables/scale_choice.csv",
            otherwise=[],
        ),
        modules=expand(
            "workflow_scripts/trainers/curricula/{module}.py",
            module=["rescaled_unet", "hypernetwork", "scale_space", "scales"],
        ),
    output:
        plans=f"{BAKED_MODEL}/plans.json",
        dataset=f"{BAKED_MODEL}/dataset.json",
        baked=f"{BAKED_MODEL}/baked.json",
        trainer=f"{BAKED_MODEL}/trainers/rescaled_unet.py",
        checkpoints=expand(
            f"{BAKED_MODEL}/fold_{{fold}}/checkpoint_final.pth",
            fold=config["folds"],
            allow_missing=True,
        ),
    log:
        "logs/bake_model/{study}_{arm}_{scale}_{dataset}_{plans}.log",
    wildcard_constraints:
        scale=rf"[01]|0\.\d+|{CHOSEN}",
        plans=r"[^/]+",
    conda:
        "../envs/nnunet.yaml"
    resources:
        mem_mb=REQUESTS.memory_mb,
        runtime=REQUESTS.minutes,
        disk_mb=REQUESTS.disk_mb,
    params:
        task=lambda wildcards: TASK_OF[wildcards.dataset],
        parameters=lambda wildcards: config["arms"][wildcards.arm]["parameters"],
    message:
        "Baking {wildcards.arm} for the scale factor {wildcards.scale}, {wildcards.dataset}"
    script:
        "../workflow_scripts/bake_model.py"


rule evaluate_scale:
    input:
        run="results/{study}/runs/{task}/{arm}/fold_{fold}/run.json",
        model=lambda wildcards: baked_plans(
            BAKED_MODEL, DATASET_OF[wildcards.task], plans_name(wildcards.task), **wildcards
        ),
        manifest=lambda wildcards: manifest_file(wildcards.task),
        splits=lambda wildcards: splits_file(wildcards.task),
    output:
        evaluation="results/{study}/scales/{task}/{arm}/fold_{fold}/scale_{scale}.json",
        summary="results/{study}/scales/{task}/{arm}/fold_{fold}/scale_{scale}.summary.json",
    log:
        "logs/evaluate_scale/{study}_{task}_{arm}_{fold}_{scale}.log",
    wildcard_constraints:
        scale=rf"[01]|0\.\d+|{PLANNED}",
    conda:
        "../envs/nnunet.yaml"
    threads: config["training"]["threads"]
    resources:
        gpu=0 if config["training"]["device"] == "cpu" else 1,
        power_meter=1 if config["energy"]["tracking_mode"] == "machine" else 0,
        mem_mb=REQUESTS.memory_mb,
        runtime=REQUESTS.minutes,
        disk_mb=REQUESTS.disk_mb,
    params:
        training={key: config["training"][key] for key in ("device", "precision", "deterministic")},
        energy=config["energy"],
        mirroring=config["validation"]["mirroring"],
    message:
        "Evaluating {wildcards.task}, {wildcards.arm}, fold {wildcards.fold} at {wildcards.scale}"
    script:
        "../workflow_scripts/evaluate_scale.py"


rule evaluate_transfer:
    input:
        run="results/{study}/runs/{task}/{arm}/fold_{fold}/run.json",
        manifest=lambda wildcards: manifest_file(wildcards.task),
        splits=lambda wildcards: splits_file(wildcards.task),
        modules="workflow_scripts/bake_model.py",
    output:
        evaluation="results/{study}/scales/{task}/{arm}/fold_{fold}/weights_{weights}_at_{scale}.json",
    log:
        "logs/evaluate_transfer/{study}_{task}_{arm}_{fold}_{weights}_{scale}.log",
    wildcard_constraints:
        weights=r"[01]|0\.\d+",
        scale=r"[01]|0\.\d+",
    conda:
        "../envs/nnunet.yaml"
    threads: config["training"]["threads"]
    resources:
        gpu=0 if config["training"]["device"] == "cpu" else 1,
        power_meter=1 if config["energy"]["tracking_mode"] == "machine" else 0,
        mem_mb=REQUESTS.memory_mb,
        runtime=REQUESTS.minutes,
        disk_mb=REQUESTS.disk_mb,
    params:
        training={key: config["training"][key] for key in ("device", "precision", "deterministic")},
        energy=config["energy"],
        mirroring=config["validation"]["mirroring"],
        cases=config["scale_space"]["transfer"]["cases"],
        parameters=lambda wildcards: config["arms"][wildcards.arm]["parameters"],
    message:
        "Evaluating {wildcards.task}, {wildcards.arm}, fold {wildcards.fold}: weights for "
        "{wildcards.weights} in the network at {wildcards.scale}"
    script:
        "../workflow_scripts/evaluate_transfer.py"
