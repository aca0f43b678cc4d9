"""
This part of the workflow draws the figures, each as .svg and .png.

REQUIRED INPUTS:

    results/{study}/tables/{runs,cases,epochs,comparison,significance,targets,class_balance}.csv
    config/plotting.yaml, the style of the figures: an edit only redraws figures
    for patches, in resources/nnUNet_preprocessed/{dataset}/: plans and preprocessed cases
    for predictions, images and references in resources/nnUNet_raw/{dataset}/, and the predictions in
    the runs' nnU-Net folders

OUTPUTS, in results/{study}/figures/:

    {differences,dice,cost,convergence,profiles,schedule,class_balance}.{svg,png}
    patches.{svg,png}       one patch as the network sees it, from the beginning to the end of a training
    predictions.{svg,png}   slices of the worst, median and best case
    budget.{svg,png}        Dice against cost, one line per arm, of a study whose arms differ in length
                            (config/budget_sweep.yaml): `snakemake budget_sweep`
"""


# Inheriting rules share the line `script:`, so the name of their script is a parameter. They do not
# inherit `localrule`.
rule plot_dice:
    input:
        runs=f"{RESULTS}/tables/runs.csv",
        style=STYLE,
        code=code("figures/plot_dice.py"),
    output:
        svg=f"{RESULTS}/figures/dice.svg",
        png=report(
            f"{RESULTS}/figures/dice.png",
            caption="report/dice.rst",
            category="Figures",
            labels={"figure": "Dice by task and arm"},
        ),
    log:
        f"logs/plot_dice/{STUDY.name}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        script="plot_dice.py",
    script:
        "../workflow_scripts/figures/{params.script}"


use rule plot_dice as plot_differences with:
    input:
        significance=f"{RESULTS}/tables/significance.csv",
        style=STYLE,
        code=code("figures/plot_differences.py"),
    output:
        svg=f"{RESULTS}/figures/differences.svg",
        png=report(
            f"{RESULTS}/figures/differences.png",
            caption="report/differences.rst",
            category="Figures",
            labels={"figure": "Difference from the reference arm"},
        ),
    log:
        f"logs/plot_differences/{STUDY.name}.log",
    localrule: True
    params:
        script="plot_differences.py",


use rule plot_dice as plot_profiles with:
    input:
        targets=f"{RESULTS}/tables/targets.csv",
        style=STYLE,
        code=code("figures/plot_profiles.py"),
    output:
        svg=f"{RESULTS}/figures/profiles.svg",
        png=report(
            f"{RESULTS}/figures/profiles.png",
            caption="report/profiles.rst",
            category="Figures",
            labels={"figure": "Cost to target, over tasks"},
        ),
    log:
        f"logs/plot_profiles/{STUDY.name}.log",
    localrule: True
    params:
        script="plot_profiles.py",


use rule plot_dice as plot_cost with:
    input:
        comparison=f"{RESULTS}/tables/comparison.csv",
        style=STYLE,
        code=code("figures/plot_cost.py"),
    output:
        svg=f"{RESULTS}/figures/cost.svg",
        png=report(
            f"{RESULTS}/figures/cost.png",
            caption="report/cost.rst",
            category="Figures",
            labels={"figure": "Cost by arm"},
        ),
    log:
        f"logs/plot_cost/{STUDY.name}.log",
    localrule: True
    params:
        script="plot_cost.py",


use rule plot_dice as plot_convergence with:
    input:
        epochs=f"{RESULTS}/tables/epochs.csv",
        style=STYLE,
        code=code("figures/plot_convergence.py"),
    output:
        svg=f"{RESULTS}/figures/convergence.svg",
        png=report(
            f"{RESULTS}/figures/convergence.png",
            caption="report/convergence.rst",
            category="Figures",
            labels={"figure": "Convergence"},
        ),
    log:
        f"logs/plot_convergence/{STUDY.name}.log",
    localrule: True
    params:
        script="plot_convergence.py",


use rule plot_dice as plot_schedule with:
    input:
        epochs=f"{RESULTS}/tables/epochs.csv",
        runs=f"{RESULTS}/tables/runs.csv",
        style=STYLE,
        code=code("figures/plot_schedule.py"),
    output:
        svg=f"{RESULTS}/figures/schedule.svg",
        png=report(
            f"{RESULTS}/figures/schedule.png",
            caption="report/schedule.rst",
            category="Figures",
            labels={"figure": "Patch-size schedules"},
        ),
    log:
        f"logs/plot_schedule/{STUDY.name}.log",
    localrule: True
    params:
        script="plot_schedule.py",


use rule plot_dice as plot_class_balance with:
    input:
        class_balance=f"{RESULTS}/tables/class_balance.csv",
        style=STYLE,
        code=code("figures/plot_class_balance.py"),
    output:
        svg=f"{RESULTS}/figures/class_balance.svg",
        png=report(
            f"{RESULTS}/figures/class_balance.png",
            caption="report/class_balance.rst",
            category="Figures",
            labels={"figure": "Foreground by patch size"},
        ),
    log:
        f"logs/plot_class_balance/{STUDY.name}.log",
    localrule: True
    params:
        script="plot_class_balance.py",


rule plot_patches:
    input:
        plans=STUDY.plans(STUDY.tasks[0]),
        manifest=STUDY.manifest(STUDY.tasks[0]),
        style=STYLE,
        code=code("figures/plot_patches.py"),
    output:
        svg=f"{RESULTS}/figures/patches.svg",
        png=report(
            f"{RESULTS}/figures/patches.png",
            caption="report/patches.rst",
            category="Figures",
            labels={"figure": "Patches during training"},
        ),
    log:
        f"logs/plot_patches/{STUDY.name}.log",
    localrule: True
    conda:
        "../envs/nnunet.yaml"
    params:
        task=STUDY.tasks[0],
        data_identifier=STUDY.data_identifier,
        configuration=STUDY.configuration,
        arms={
            name: {
                "trainer": arm["trainer"],
                "parameters": arm["parameters"],
                "training": STUDY.training(name),
            }
            for name, arm in config["arms"].items()
        },
    message:
        "Drawing patches during training"
    script:
        "../workflow_scripts/figures/plot_patches.py"


rule plot_predictions:
    input:
        runs=f"{RESULTS}/tables/runs.csv",
        cases=f"{RESULTS}/tables/cases.csv",
        style=STYLE,
        code=code("figures/plot_predictions.py"),
    output:
        svg=f"{RESULTS}/figures/predictions.svg",
        png=report(
            f"{RESULTS}/figures/predictions.png",
            caption="report/predictions.rst",
            category="Figures",
            labels={"figure": "Example slices"},
        ),
    log:
        f"logs/plot_predictions/{STUDY.name}.log",
    conda:
        "../envs/nnunet.yaml"
    resources:
        **JOBS.of("plot_predictions"),
    params:
        raw=str(RAW),
        reference_arm=config["reference_arm"],
    message:
        "Drawing example slices"
    script:
        "../workflow_scripts/figures/plot_predictions.py"


use rule plot_dice as plot_budget_sweep with:
    input:
        runs=f"{RESULTS}/tables/runs.csv",
        style=STYLE,
        code=code("figures/plot_budget_sweep.py"),
    output:
        svg=f"{RESULTS}/figures/budget.svg",
        png=f"{RESULTS}/figures/budget.png",
    log:
        f"logs/plot_budget_sweep/{STUDY.name}.log",
    localrule: True
    params:
        script="plot_budget_sweep.py",
