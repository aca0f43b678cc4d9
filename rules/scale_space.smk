"""
This part of the workflow bakes scale-space networks into ordinary nnU-Net models, and measures
accuracy against the cost of inference: `snakemake bake`, `snakemake scale_space`.

REQUIRED INPUTS, of a study with an arm of the trainer nnUNetTrainerScaleSpace:

    results/{study}/runs/{task}/{arm}/fold_{fold}/run.json, and the checkpoints that it names
    resources/nnUNet_preprocessed/{dataset}/: preprocessed cases, splits_final.json

OUTPUTS, in results/{study}/:

    baked/{arm}/scale_{scale}/{dataset}/…            nnU-Net's model folder, with trainers/ for
                                                     nnUNet_extTrainer
    scales/{task}/{arm}/fold_{fold}/                 Dice and cost of each evaluated scale factor
    tables/scale_space.{csv,md}, scale_choice.csv, scale_costs.csv, figures/scale_space.{svg,png}

STEPS: bake_model, evaluate_scale, tabulate_scales, plot_scales
"""

from scale_study import BAKED_TRAINER, CHOSEN, PLANNED, baked_plans, evaluations, wanted_models

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
    params:
        training={key: config["training"][key] for key in ("device", "precision", "deterministic")},
        energy=config["energy"],
        mirroring=config["validation"]["mirroring"],
    message:
        "Evaluating {wildcards.task}, {wildcards.arm}, fold {wildcards.fold} at {wildcards.scale}"
    script:
        "../workflow_scripts/evaluate_scale.py"


rule tabulate_scales:
    input:
        evaluations=[
            f"results/{STUDY}/scales/{task}/{arm}/fold_{fold}/scale_{scale}.json"
            for task, arm, fold, scale in evaluations(config)
        ],
        runs=run_files("run.json"),
        modules="workflow_scripts/scale_tables.py",
    output:
        csv="results/{study}/tables/scale_space.csv",
        md=report(
            "results/{study}/tables/scale_space.md",
            caption="report/scale_space.rst",
            category="Scale space",
            labels={"result": "Accuracy and cost by scale factor"},
        ),
        choice="results/{study}/tables/scale_choice.csv",
        costs="results/{study}/tables/scale_costs.csv",
    log:
        "logs/tabulate_scales/{study}.log",
    conda:
        "../envs/analysis.yaml"
    params:
        arms=config["arms"],
        tolerance=config["scale_space"]["tolerance"],
        mirroring=config["validation"]["mirroring"],
    script:
        "../workflow_scripts/tabulate_scales.py"


rule plot_scales:
    input:
        scales="results/{study}/tables/scale_space.csv",
        style="config/plotting.yaml",
        modules="workflow_scripts/plotting.py",
    output:
        svg="results/{study}/figures/scale_space.svg",
        png=report(
            "results/{study}/figures/scale_space.png",
            caption="report/scale_space.rst",
            category="Scale space",
            labels={"result": "Dice by cost of inference"},
        ),
    log:
        "logs/plot_scales/{study}.log",
    conda:
        "../envs/analysis.yaml"
    script:
        "../workflow_scripts/plot_scales.py"
