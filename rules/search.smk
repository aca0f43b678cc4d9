"""
This part of the workflow searches for a frequency schedule for each task, part by part, as
EfficientTrain++ does: `snakemake search_curriculum`. For each part, every candidate is trained with
the same computation, and the one with the best Dice is kept. A trial is an arm named after the
frequencies of its parts, such as search_3of7_5of7_1, and is trained by the rule train_fold.

REQUIRED INPUTS:

    resources/nnUNet_preprocessed/{dataset}/{plans}.json
    results/{study}/forecast/needs.json
    results/{study}/runs/{task}/{trial}/fold_{fold}/{run.json,epochs.csv}, of the trials

OUTPUTS, in results/{study}/search/:

    forecast.{csv,md}     cost of the longest possible search, made before any trial starts
    {task}/part_{n}.json  the first n parts as decided, all trials so far, the trials of the next part
    search.{csv,md}       one row per part and trial: Dice, steps, cost
    arms.yaml             by task, the arm that uses the resulting schedule

STEPS: forecast_search_study, with a budget check_search_budget; choose_frequencies; tabulate_search
"""

from workflow_scripts.study.curriculum_search import most_trials, trial_arm

SEARCH = f"{RESULTS}/search"
MOST_TRIALS = {trial: trial_arm(trial, config) for trial in most_trials(config["search"])}
SEARCHED = {"search": config["search"], "training": {"epochs": config["training"]["epochs"]}}


localrules:  # not inherited by `use rule`
    forecast_search_study,
    check_search_budget,


use rule forecast_study as forecast_search_study with:
    input:
        plans=shipped("config/published/nnunet_plans.tsv"),
        runs=shipped("config/published/nnunet_runs.tsv"),
        loading=shipped("config/published/loading.tsv"),
        code=code("forecast/forecast_study.py"),
        unpublished=[STUDY.plans(task) for task in STUDY.tasks if task not in PUBLISHED_PLANS],
    output:
        csv=f"{SEARCH}/forecast.csv",
        md=f"{SEARCH}/forecast.md",
    log:
        f"logs/forecast_search_study/{STUDY.name}.log",
    params:
        **FORECASTED
        | {
            "study": f"{STUDY.name}, search_curriculum",
            "folds": [config["search"]["fold"]],
            "seeds": 1,
            "arms": MOST_TRIALS,
            "reference_arm": next(iter(MOST_TRIALS)),
            "training": FORECASTED["training"]
            | {"epochs": next(iter(MOST_TRIALS.values()))["epochs"]},
        },
    message:
        f"Forecasting the search of the study {STUDY.name}"


use rule check_budget as check_search_budget with:
    input:
        forecast=f"{SEARCH}/forecast.csv",
        page=f"{SEARCH}/forecast.md",
    output:
        within=f"{SEARCH}/within_budget.json",
    log:
        f"logs/check_search_budget/{STUDY.name}.log",
    message:
        f"Checking the budget of the search of the study {STUDY.name}"


checkpoint choose_frequencies:
    input:
        unpack(
            lambda wildcards: (
                {
                    "previous": f"{SEARCH}/{wildcards.task}/part_{int(wildcards.part) - 1}.json",
                    "runs": trials_of_part(wildcards),
                }
                if int(wildcards.part)
                else {
                    "needs": ancient(f"{RESULTS}/forecast/needs.json"),
                    "forecast": ancient(f"{SEARCH}/forecast.md"),
                }
                | ({"within": ancient(f"{SEARCH}/within_budget.json")} if HAS_BUDGET else {})
            )
        ),
        plans=lambda wildcards: STUDY.plans(wildcards.task),
    output:
        part=f"{SEARCH}/{{task}}/part_{{part}}.json",
    log:
        f"logs/choose_frequencies/{STUDY.name}_{{task}}_{{part}}.log",
    wildcard_constraints:
        part=r"\d+",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        config=SEARCHED,
        configuration=STUDY.configuration,
    message:
        "Choosing the frequencies of {wildcards.task} after part {wildcards.part}"
    script:
        "../workflow_scripts/search/choose_frequencies.py"


rule tabulate_search:
    input:
        parts=expand(
            f"{SEARCH}/{{task}}/part_{{part}}.json",
            task=STUDY.tasks,
            part=config["search"]["parts"] - 1,
        ),
        code=code("search/tabulate_search.py"),
    output:
        csv=f"{SEARCH}/search.csv",
        md=f"{SEARCH}/search.md",
        arms=f"{SEARCH}/arms.yaml",
    log:
        f"logs/tabulate_search/{STUDY.name}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        tasks=STUDY.tasks,
        config=SEARCHED,
    message:
        f"Tabulating the search of the study {STUDY.name}"
    script:
        "../workflow_scripts/search/tabulate_search.py"
