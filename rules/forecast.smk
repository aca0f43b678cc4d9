"""
This part of the workflow forecasts the cost of the study from plans alone: `snakemake forecast`.
With a `budget` in the configuration, no training starts unless the forecast is within it. With
`cluster.max_runtime_minutes`, no training starts before the forecast sets the run time of its job.

REQUIRED INPUTS:

    config/published/nnunet_plans.tsv, nnunet_runs.tsv
    read if they exist, but deliberately not inputs, because a forecast must not make them:
    nnU-Net's own plans in resources/nnUNet_preprocessed/{dataset}/, and with `forecast.calibration:
    measured` the finished runs in `forecast.runs`

OUTPUTS, in results/{study}/forecast/:

    forecast.csv         one row per task and arm
    forecast.md          totals, arms, assumptions and error on one screen
    forecast.{svg,png}   bars by arm
    fit.csv, fit.md      epochs with which the study fits the section `fit`: `snakemake fit`
    fit.yaml             the same as a configuration to add to that of the study
    within_budget.json   only with a budget: the limits and the forecast
    needs.json           result of the check before the first training: plans, names, disk space, GPU memory
"""

FORECAST = multiext(f"{RESULTS}/forecast/forecast", ".csv", ".md", ".svg", ".png")
OWN_PLANS = {task: f"{STUDY.preprocessed(task)}/{STUDY.base_plans}.json" for task in STUDY.tasks}
PUBLISHED_PLANS = [
    task
    for task in STUDY.tasks
    if task in MSD and STUDY.data_identifier == "nnUNetPlans_3d_fullres"
]
CALIBRATING_RUNS = (
    [f"{folder}/**/run.json" for folder in config["forecast"]["runs"]]
    if config["forecast"]["calibration"] == "measured"
    else []
)

FORECASTED = {
    "study": STUDY.name,
    "tasks": STUDY.tasks,
    "folds": config["folds"],
    "seeds": len(STUDY.seeds),
    "arms": config["arms"],
    "reference_arm": config["reference_arm"],
    "configuration": STUDY.configuration,
    "overrides": {task: STUDY.overrides(task) for task in STUDY.tasks},
    "training": {
        key: value
        for key, value in config["training"].items()
        if key in ("seed", "epochs") or key.endswith("iterations_per_epoch")
    },
    "mirroring": config["validation"]["mirroring"],
    "device": config["training"]["device"],
    "workers": config["training"]["threads"],
    "country": config["energy"]["country"],
    "pue": config["energy"]["pue"],
    "calibration": config["forecast"]["calibration"],
    "own_plans": OWN_PLANS,
    "published": PUBLISHED_PLANS,
    "runs": lambda wildcards: file_digests(CALIBRATING_RUNS),
    "found": lambda wildcards: file_digests(OWN_PLANS.values()),
}


rule forecast_study:
    input:
        plans=shipped("config/published/nnunet_plans.tsv"),
        runs=shipped("config/published/nnunet_runs.tsv"),
        loading=shipped("config/published/loading.tsv"),
        code=code("forecast/forecast_study.py"),
        # The trainings need them anyway. Without them, costs and run times are unknown.
        unpublished=[
            STUDY.plans(task)
            for task in STUDY.tasks
            if task not in PUBLISHED_PLANS and (HAS_BUDGET or JOBS.forecast_decides)
        ],
    output:
        csv=f"{RESULTS}/forecast/forecast.csv",
        md=report(
            f"{RESULTS}/forecast/forecast.md",
            caption="report/forecast.rst",
            category="Forecast",
            labels={"forecast": "Totals and assumptions"},
        ),
    log:
        f"logs/forecast_study/{STUDY.name}.log",
    priority: 100
    localrule: True
    conda:
        "../envs/nnunet.yaml"
    params:
        **FORECASTED,
    message:
        f"Forecasting the study {STUDY.name}"
    script:
        "../workflow_scripts/forecast/forecast_study.py"


rule fit_study:
    input:
        plans=shipped("config/published/nnunet_plans.tsv"),
        runs=shipped("config/published/nnunet_runs.tsv"),
        loading=shipped("config/published/loading.tsv"),
        code=code("forecast/fit_study.py"),
    output:
        csv=f"{RESULTS}/forecast/fit.csv",
        md=f"{RESULTS}/forecast/fit.md",
        yaml=f"{RESULTS}/forecast/fit.yaml",
    log:
        f"logs/fit_study/{STUDY.name}.log",
    localrule: True
    conda:
        "../envs/nnunet.yaml"
    params:
        **FORECASTED,
        fit=config["fit"],
    message:
        f"Fitting the study {STUDY.name}"
    script:
        "../workflow_scripts/forecast/fit_study.py"


rule plot_forecast:
    input:
        forecast=f"{RESULTS}/forecast/forecast.csv",
        style=STYLE,
        code=code("forecast/plot_forecast.py"),
    output:
        svg=f"{RESULTS}/forecast/forecast.svg",
        png=report(
            f"{RESULTS}/forecast/forecast.png",
            caption="report/forecast.rst",
            category="Forecast",
            labels={"forecast": "Cost by arm"},
        ),
    log:
        f"logs/plot_forecast/{STUDY.name}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        reference_arm=config["reference_arm"],
    script:
        "../workflow_scripts/forecast/plot_forecast.py"


checkpoint check_needs:
    input:
        plans=shipped("config/published/nnunet_plans.tsv"),
        unpublished=[STUDY.plans(task) for task in STUDY.tasks if task not in PUBLISHED_PLANS],
        # Chained, because an input function only sees the first checkpoint that is not done yet.
        within=[f"{RESULTS}/forecast/within_budget.json"] if HAS_BUDGET else [],
        forecast=[f"{RESULTS}/forecast/forecast.csv"] if JOBS.forecast_decides else [],
    output:
        needs=f"{RESULTS}/forecast/needs.json",
    log:
        f"logs/check_needs/{STUDY.name}.log",
    priority: 100
    localrule: True
    conda:
        "../envs/nnunet.yaml"
    params:
        **{
            key: FORECASTED[key]
            for key in ("study", "tasks", "folds", "seeds", "arms", "configuration", "overrides")
            + ("training", "mirroring", "own_plans", "published")
        },
        records=[
            [*run[:2], path] for run, path in zip(STUDY.runs, run_files("run.json"), strict=True)
        ],
        manifests={task: STUDY.manifest(task) for task in STUDY.tasks},
        splits={task: STUDY.splits(task) for task in STUDY.tasks},
        device=config["training"]["device"],
    message:
        f"Checking what the study {STUDY.name} needs"
    script:
        "../workflow_scripts/forecast/check_needs.py"


rule check_budget:
    input:
        forecast=f"{RESULTS}/forecast/forecast.csv",
        page=f"{RESULTS}/forecast/forecast.md",
    output:
        within=f"{RESULTS}/forecast/within_budget.json",
    log:
        f"logs/check_budget/{STUDY.name}.log",
    priority: 100
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        study=STUDY.name,
        budget=config["budget"],
    message:
        f"Checking the budget of the study {STUDY.name}"
    script:
        "../workflow_scripts/forecast/check_budget.py"
