"""
This part of the workflow forecasts what the study will cost, from plans alone: `snakemake forecast`.
With a `budget` in the configuration no training begins before the forecast is within it, and with
`cluster.max_runtime_minutes` none before it tells how much time a job should ask for.

REQUIRED INPUTS:

    config/published/nnunet_plans.tsv, nnunet_runs.tsv
    read if they are there, on purpose no inputs, since a forecast must not make them:
    nnU-Net's own plans in resources/nnUNet_preprocessed/{dataset}/, and with `forecast.calibration:
    measured` the finished runs in `forecast.runs`

OUTPUTS, in results/{study}/forecast/:

    forecast.csv         one row a task and arm
    forecast.md          totals, arms, assumptions and error on one screen
    forecast.{svg,png}   bars by arm
    within_budget.json   only with a budget: what it was checked against
"""

from nnunet import file_digests

FORECAST = expand(f"results/{STUDY}/forecast/forecast.{{kind}}", kind=["csv", "md", "svg", "png"])
OWN_PLANS = {
    task: f"resources/nnUNet_preprocessed/{dataset}/{BASE_PLANS}.json"
    for task, dataset in DATASET_OF.items()
    if task in config["tasks"]
}
PUBLISHED_PLANS = [
    task for task in config["tasks"] if task in MSD and DATA_IDENTIFIER == "nnUNetPlans_3d_fullres"
]
CALIBRATING_RUNS = (
    [f"{folder}/**/run.json" for folder in config["forecast"]["runs"]]
    if config["forecast"]["calibration"] == "measured"
    else []
)


checkpoint forecast_study:
    input:
        plans="config/published/nnunet_plans.tsv",
        runs="config/published/nnunet_runs.tsv",
        modules=expand(
            "workflow_scripts/{module}.py",
            module=[
                "forecast",
                "calibration",
                "flops",
                "trainers/curricula/planning",
                "trainers/curricula/schedules",
                "trainers/curricula/scales",
            ],
        ),
        # Needed for the trainings anyway; without them no budget could be checked and no job timed.
        unpublished=[
            plans_file(task)
            for task in config["tasks"]
            if task not in PUBLISHED_PLANS and (HAS_BUDGET or REQUESTS.forecast_decides)
        ],
    output:
        csv="results/{study}/forecast/forecast.csv",
        md=report(
            "results/{study}/forecast/forecast.md",
            caption="report/forecast.rst",
            category="Forecast",
            labels={"forecast": "Totals and assumptions"},
        ),
    log:
        "logs/forecast_study/{study}.log",
    priority: 100
    localrule: True
    conda:
        "../envs/nnunet.yaml"
    params:
        tasks=config["tasks"],
        folds=config["folds"],
        arms=config["arms"],
        reference_arm=config["reference_arm"],
        configuration=PLANNING["configuration"],
        overrides={task: overrides(task) for task in config["tasks"]},
        training={
            key: value
            for key, value in config["training"].items()
            if key in ("seed", "epochs") or key.endswith("iterations_per_epoch")
        },
        mirroring=config["validation"]["mirroring"],
        country=config["energy"]["country"],
        pue=config["energy"]["pue"],
        calibration=config["forecast"]["calibration"],
        own_plans=OWN_PLANS,
        published=PUBLISHED_PLANS,
        runs=lambda wildcards: file_digests(CALIBRATING_RUNS),
        found=lambda wildcards: file_digests(OWN_PLANS.values()),
    message:
        "Forecasting the study {wildcards.study}"
    script:
        "../workflow_scripts/forecast_study.py"


rule plot_forecast:
    input:
        forecast="results/{study}/forecast/forecast.csv",
        style="config/plotting.yaml",
        modules="workflow_scripts/plotting.py",
    output:
        svg="results/{study}/forecast/forecast.svg",
        png=report(
            "results/{study}/forecast/forecast.png",
            caption="report/forecast.rst",
            category="Forecast",
            labels={"forecast": "Cost by arm"},
        ),
    log:
        "logs/plot_forecast/{study}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        reference_arm=config["reference_arm"],
    script:
        "../workflow_scripts/plot_forecast.py"


checkpoint check_budget:
    input:
        forecast="results/{study}/forecast/forecast.csv",
        page="results/{study}/forecast/forecast.md",
    output:
        within="results/{study}/forecast/within_budget.json",
    log:
        "logs/check_budget/{study}.log",
    priority: 100
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        budget=config["budget"],
    message:
        "Checking the budget of the study {wildcards.study}"
    script:
        "../workflow_scripts/check_budget.py"
