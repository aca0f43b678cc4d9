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
                                                     Dice of weights in networks of other factors
    tables/scale_space.{csv,md}          accuracy and cost of inference, with notes for the reader
    tables/scale_choice.csv              the cheapest scale factor that is good enough
    tables/scale_checks.csv              whether the weights follow the scale factor
    tables/scale_costs.csv               cost of training
    tables/scale_comparisons.{csv,md}    the hypernetwork against its controls, paired over cases
    tables/scale_transfer.{csv,md}       Dice of weights in networks of other scale factors
    figures/scale_space.{svg,png}, figures/scale_transfer.{svg,png}

STEPS: bake_model, evaluate_scale and evaluate_transfer; tabulate_scales, compare_scales, plot_scales;
tabulate_transfer, plot_transfer
"""

from workflow_scripts.study.scale_grid import (
    BAKED_TRAINER,
    CHOSEN,
    PLANNED,
    baked_plans,
    evaluations,
    transfers,
    wanted_models,
)

SCALES = f"{RESULTS}/scales/{{task}}/{{arm}}/fold_{{fold}}"
BAKED_MODEL = (
    f"{RESULTS}/baked/{{arm}}/scale_{{scale}}/{{dataset}}/"
    f"{BAKED_TRAINER}__{{plans}}__{STUDY.configuration}"
)


rule bake_model:
    input:
        runs=lambda wildcards: expand(
            f"{RUN_OF_TRAINING_SEED}/run.json",
            task=STUDY.task_of[wildcards.dataset],
            arm=wildcards.arm,
            fold=config["folds"],
        ),
        choice=branch(
            lambda wildcards: wildcards.scale == CHOSEN,
            then=f"{RESULTS}/tables/scale_choice.csv",
            otherwise=[],
        ),
        network=shipped("workflow_scripts/trainers/curricula/networks/rescaled_unet.py"),
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
        f"logs/bake_model/{STUDY.name}_{{arm}}_{{scale}}_{{dataset}}_{{plans}}.log",
    wildcard_constraints:
        scale=rf"[01]|0\.\d+|{CHOSEN}",
        plans=r"[^/]+",
    conda:
        "../envs/nnunet.yaml"
    resources:
        **JOBS.of("bake_model"),
    params:
        task=lambda wildcards: STUDY.task_of[wildcards.dataset],
        parameters=lambda wildcards: config["arms"][wildcards.arm]["parameters"],
    message:
        "Baking {wildcards.arm} for the scale factor {wildcards.scale}, {wildcards.dataset}"
    script:
        "../workflow_scripts/scale_space/bake_model.py"


rule evaluate_scale:
    input:
        run=f"{RUN_OF_TRAINING_SEED}/run.json",
        model=lambda wildcards: baked_plans(
            BAKED_MODEL,
            STUDY.dataset_of[wildcards.task],
            STUDY.plans_name(wildcards.task),
            **wildcards,
        ),
        manifest=lambda wildcards: STUDY.manifest(wildcards.task),
        splits=lambda wildcards: STUDY.splits(wildcards.task),
    output:
        evaluation=f"{SCALES}/scale_{{scale}}.json",
        summary=f"{SCALES}/scale_{{scale}}.summary.json",
    log:
        f"logs/evaluate_scale/{STUDY.name}_{{task}}_{{arm}}_{{fold}}_{{scale}}.log",
    wildcard_constraints:
        scale=rf"[01]|0\.\d+|{PLANNED}",
    conda:
        "../envs/nnunet.yaml"
    threads: config["training"]["threads"]
    resources:
        **JOBS.of("evaluate_scale"),
    params:
        training={key: config["training"][key] for key in ("device", "precision", "deterministic")},
        energy=config["energy"],
        mirroring=config["validation"]["mirroring"],
    message:
        "Evaluating {wildcards.task}, {wildcards.arm}, fold {wildcards.fold} at {wildcards.scale}"
    script:
        "../workflow_scripts/scale_space/evaluate_scale.py"


rule evaluate_transfer:
    input:
        run=f"{RUN_OF_TRAINING_SEED}/run.json",
        manifest=lambda wildcards: STUDY.manifest(wildcards.task),
        splits=lambda wildcards: STUDY.splits(wildcards.task),
    output:
        evaluation=f"{SCALES}/weights_{{weights}}_at_{{scale}}.json",
    log:
        f"logs/evaluate_transfer/{STUDY.name}_{{task}}_{{arm}}_{{fold}}_{{weights}}_{{scale}}.log",
    wildcard_constraints:
        weights=r"[01]|0\.\d+",
        scale=r"[01]|0\.\d+",
    conda:
        "../envs/nnunet.yaml"
    threads: config["training"]["threads"]
    resources:
        **JOBS.of("evaluate_transfer"),
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
        "../workflow_scripts/scale_space/evaluate_transfer.py"


EVALUATIONS = [
    f"{RESULTS}/scales/{task}/{arm}/fold_{fold}/scale_{scale}"
    for task, arm, fold, scale in evaluations(config)
]


rule tabulate_scales:
    input:
        evaluations=expand("{model}.json", model=EVALUATIONS),
        runs=run_files("run.json", seeds=[config["training"]["seed"]]),
        code=code("scale_space/tabulate_scales.py"),
    output:
        csv=f"{RESULTS}/tables/scale_space.csv",
        md=report(
            f"{RESULTS}/tables/scale_space.md",
            caption="report/scale_space.rst",
            category="Scale space",
            labels={"result": "Accuracy and cost by scale factor"},
        ),
        choice=f"{RESULTS}/tables/scale_choice.csv",
        checks=f"{RESULTS}/tables/scale_checks.csv",
        costs=f"{RESULTS}/tables/scale_costs.csv",
    log:
        f"logs/tabulate_scales/{STUDY.name}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        arms=config["arms"],
        tolerance=config["scale_space"]["tolerance"],
        mirroring=config["validation"]["mirroring"],
    script:
        "../workflow_scripts/scale_space/tabulate_scales.py"


rule compare_scales:
    input:
        evaluations=expand("{model}.json", model=EVALUATIONS),
        summaries=expand("{model}.summary.json", model=EVALUATIONS),
        runs=run_files("run.json", seeds=[config["training"]["seed"]]),
        code=code("scale_space/compare_scales.py"),
    output:
        csv=f"{RESULTS}/tables/scale_comparisons.csv",
        md=report(
            f"{RESULTS}/tables/scale_comparisons.md",
            caption="report/scale_comparisons.rst",
            category="Scale space",
            labels={"result": "The hypernetwork against its controls"},
        ),
    log:
        f"logs/compare_scales/{STUDY.name}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        arms=config["arms"],
        seed=config["training"]["seed"],
    script:
        "../workflow_scripts/scale_space/compare_scales.py"


rule plot_scales:
    input:
        scales=f"{RESULTS}/tables/scale_space.csv",
        style=STYLE,
        code=code("scale_space/plot_scales.py"),
    output:
        svg=f"{RESULTS}/figures/scale_space.svg",
        png=report(
            f"{RESULTS}/figures/scale_space.png",
            caption="report/scale_space.rst",
            category="Scale space",
            labels={"result": "Dice by cost of inference"},
        ),
    log:
        f"logs/plot_scales/{STUDY.name}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    script:
        "../workflow_scripts/scale_space/plot_scales.py"


rule tabulate_transfer:
    input:
        evaluations=[
            f"{RESULTS}/scales/{task}/{arm}/fold_{fold}/weights_{weights}_at_{scale}.json"
            for task, arm, fold, weights, scale in transfers(config)
        ],
        code=code("scale_space/tabulate_transfer.py"),
    output:
        csv=f"{RESULTS}/tables/scale_transfer.csv",
        md=report(
            f"{RESULTS}/tables/scale_transfer.md",
            caption="report/scale_transfer.rst",
            category="Scale space",
            labels={"result": "Weights in other networks"},
        ),
    log:
        f"logs/tabulate_transfer/{STUDY.name}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    script:
        "../workflow_scripts/scale_space/tabulate_transfer.py"


rule plot_transfer:
    input:
        transfer=f"{RESULTS}/tables/scale_transfer.csv",
        style=STYLE,
        code=code("scale_space/plot_transfer.py"),
    output:
        svg=f"{RESULTS}/figures/scale_transfer.svg",
        png=report(
            f"{RESULTS}/figures/scale_transfer.png",
            caption="report/scale_transfer.rst",
            category="Scale space",
            labels={"result": "Weights in other networks, drawn"},
        ),
    log:
        f"logs/plot_transfer/{STUDY.name}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    script:
        "../workflow_scripts/scale_space/plot_transfer.py"
