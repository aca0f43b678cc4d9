"""
This part of the workflow draws the figures, each as .svg and .png.

REQUIRED INPUTS:

    results/{study}/tables/{runs,cases,epochs,comparison,verdicts,significance,targets,class_balance}.csv
    config/plotting.yaml, the style of the figures: an edit only redraws figures
    for patches, in resources/nnUNet_preprocessed/{dataset}/: plans and preprocessed cases
    for predictions, images and references in resources/nnUNet_raw/{dataset}/, and the predictions in
    the runs' nnU-Net folders

OUTPUTS, in results/{study}/figures/:

    decision.{svg,png}      the answer: change in Dice against relative cost, by arm and task
    {differences,dice,cost,convergence,profiles,schedule,class_balance}.{svg,png}
    patches.{svg,png}       one patch as the network sees it, from the beginning to the end of a training
    predictions.{svg,png}   slices of the worst, median and best case
    budget.{svg,png}        Dice against cost, one line per arm, of a study whose arms differ in length
                            (config/studies/budget_sweep.yaml): `snakemake budget_sweep`
"""

# The figures that show tables: figure -> tables, title in the report. Each is drawn by the script
# plot_{figure}.py and explained in report/{figure}.rst.
OF_TABLES = {
    "differences": (["significance"], "Difference from the reference arm"),
    "dice": (["runs"], "Dice by task and arm"),
    "cost": (["comparison"], "Cost by arm"),
    "convergence": (["epochs"], "Convergence"),
    "profiles": (["targets"], "Cost to target, over tasks"),
    "schedule": (["epochs", "runs"], "Patch-size schedules"),
    "class_balance": (["class_balance"], "Foreground by patch size"),
}
FIGURES = expand(
    f"{RESULTS}/figures/{{figure}}.{{kind}}",
    figure=["decision", *OF_TABLES, "patches", "predictions"],
    kind=["svg", "png"],
)


# Snakemake reads the line `script:` after the loop, so the name of the script is a parameter.
for figure, (tables, title) in OF_TABLES.items():

    rule:
        name:
            f"plot_{figure}"
        input:
            **{table: f"{RESULTS}/tables/{table}.csv" for table in tables},
            style=STYLE,
            code=code(f"figures/plot_{figure}.py"),
        output:
            svg=f"{RESULTS}/figures/{figure}.svg",
            png=report(
                f"{RESULTS}/figures/{figure}.png",
                caption=f"report/{figure}.rst",
                category="Figures",
                labels={"figure": title},
            ),
        log:
            f"logs/plot_{figure}/{STUDY.name}.log",
        localrule: True
        conda:
            "../envs/analysis.yaml"
        params:
            script=f"plot_{figure}.py",
        script:
            "../workflow_scripts/figures/{params.script}"


rule plot_decision:
    input:
        verdicts=f"{RESULTS}/tables/verdicts.csv",
        style=STYLE,
        code=code("figures/plot_decision.py"),
    output:
        svg=f"{RESULTS}/figures/decision.svg",
        png=report(
            f"{RESULTS}/figures/decision.png",
            caption="report/decision.rst",
            category="Answer",
            labels={"figure": "Change in Dice against cost"},
        ),
    log:
        f"logs/plot_decision/{STUDY.name}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        cost=config["comparison"]["cost"],
        reference_arm=config["reference_arm"],
    message:
        "Drawing the change in Dice against the cost"
    script:
        "../workflow_scripts/figures/plot_decision.py"


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
