"""
This part of the workflow collects the files of all runs in tidy tables, compares the arms, assesses
the significance of the differences, and checks published claims.

REQUIRED INPUTS:

    results/{study}/runs/{task}/{arm}/fold_{fold}{seed_suffix}/{run.json,epochs.csv,stages.csv,energy.csv,summary.json},
    and the predictions of the validation cases in the nnU-Net folder that run.json names
    resources/nnUNet_raw/{dataset}/labelsTr/
    for the class balance, in resources/nnUNet_preprocessed/{dataset}/: plans, preprocessed cases
    config/published/{claims.yaml,nnunet_runs.tsv}, config/schemas/claims.schema.yaml

OUTPUTS:

    results/{study}/runs/{task}/{arm}/fold_{fold}{seed_suffix}/surface.csv    NSD of each validation case and label

and in results/{study}/tables/:

    runs.csv                  one row per run
    cases.csv                 one row per validation case and label: Dice, NSD and counts
    epochs.csv, stages.csv, energy.csv    the tables of all runs, concatenated
    comparison.{csv,md,tex}   the arms against the reference arm, per task and overall
    overview.{csv,md,tex}     tasks by arms: Dice with ranks and significance, and relative costs
    significance.csv          every arm against the reference arm, paired over cases
    verdicts.{csv,md}         is Dice kept: a verdict for each arm and task, and what would settle it
    ranks.{csv,md}            stability of the ranks, and whether a task tells arms apart
    targets.{csv,md}          cost for each arm to become as good as the fully trained reference arm
    budget.{csv,md}, budget_targets.csv   of a sweep of training lengths (`snakemake budget_sweep`): Dice
                              at equal cost, crossing points, and the cost to reach a final Dice
    variance.csv              spread of Dice due to folds, to seeds, and to the rest
    claims.{csv,md}           each published claim, the measured value, and a verdict
    reference_runs.csv        the reference arm beside published nnU-Net, by task and fold
    class_balance.csv         foreground in patches of each curriculum size, as sampled by nnU-Net
"""

NSD_TOLERANCE_MM = {
    **{task: row["nsd_tolerance_mm"] for task, row in (MSD | config["own_tasks"]).items()},
    DEMO_TASK: DEMO_TOLERANCE_MM,
}


rule measure_surface_distance:
    input:
        run=f"{RUN}/run.json",
        summary=f"{RUN}/summary.json",
        dataset=lambda wildcards: STUDY.raw(wildcards.task),
    output:
        surface=f"{RUN}/surface.csv",
    log:
        f"logs/measure_surface_distance/{STUDY.name}_{{task}}_{{arm}}_{{fold}}{{seed_suffix}}.log",
    conda:
        "../envs/nnunet.yaml"
    resources:
        **JOBS.of("measure_surface_distance"),
    params:
        tolerance_mm=lambda wildcards: NSD_TOLERANCE_MM[wildcards.task],
    message:
        "Measuring surface distances of {wildcards.task}, {wildcards.arm}, "
        "fold {wildcards.fold}{wildcards.seed_suffix}"
    script:
        "../workflow_scripts/evaluation/measure_surface_distance.py"


rule collect_results:
    input:
        run=run_files("run.json"),
        epochs=run_files("epochs.csv"),
        stages=run_files("stages.csv"),
        energy=run_files("energy.csv"),
        summary=run_files("summary.json"),
        surface=run_files("surface.csv"),
        code=code("evaluation/collect_results.py"),
    output:
        runs=f"{RESULTS}/tables/runs.csv",
        cases=f"{RESULTS}/tables/cases.csv",
        epochs=f"{RESULTS}/tables/epochs.csv",
        stages=f"{RESULTS}/tables/stages.csv",
        energy=f"{RESULTS}/tables/energy.csv",
    log:
        f"logs/collect_results/{STUDY.name}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        runs=STUDY.runs,
    message:
        f"Collecting the results of the study {STUDY.name}"
    script:
        "../workflow_scripts/evaluation/collect_results.py"


rule compare_arms:
    input:
        runs=f"{RESULTS}/tables/runs.csv",
        cases=f"{RESULTS}/tables/cases.csv",
        code=code("evaluation/compare_arms.py"),
    output:
        csv=report(
            f"{RESULTS}/tables/comparison.csv",
            caption="report/comparison.rst",
            category="Tables",
            labels={"table": "Comparison of the arms"},
        ),
        md=f"{RESULTS}/tables/comparison.md",
        tex=f"{RESULTS}/tables/comparison.tex",
    log:
        f"logs/compare_arms/{STUDY.name}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        reference_arm=config["reference_arm"],
        tasks=STUDY.tasks,
        arms=list(config["arms"]),
        energy=config["energy"],
    message:
        f"Comparing the arms of the study {STUDY.name}"
    script:
        "../workflow_scripts/evaluation/compare_arms.py"


rule assess_significance:
    input:
        cases=f"{RESULTS}/tables/cases.csv",
        code=code("evaluation/assess_significance.py"),
    output:
        table=report(
            f"{RESULTS}/tables/significance.csv",
            caption="report/significance.rst",
            category="Tables",
            labels={"table": "Significance of the differences"},
        ),
    log:
        f"logs/assess_significance/{STUDY.name}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        reference_arm=config["reference_arm"],
        tasks=STUDY.tasks,
        arms=list(config["arms"]),
        seed=config["training"]["seed"],
    message:
        f"Assessing the differences between the arms of the study {STUDY.name}"
    script:
        "../workflow_scripts/evaluation/assess_significance.py"


rule decide_arms:
    input:
        **{
            table: f"{RESULTS}/tables/{table}.csv"
            for table in ("runs", "cases", "epochs", "comparison")
        },
        code=code("evaluation/decide_arms.py"),
    output:
        csv=f"{RESULTS}/tables/verdicts.csv",
        md=report(
            f"{RESULTS}/tables/verdicts.md",
            caption="report/verdicts.rst",
            category="Answer",
            labels={"table": "Is Dice kept?"},
        ),
        ranks=f"{RESULTS}/tables/ranks.csv",
        ranks_md=report(
            f"{RESULTS}/tables/ranks.md",
            caption="report/ranks.rst",
            category="Tables",
            labels={"table": "Stability of ranks"},
        ),
    log:
        f"logs/decide_arms/{STUDY.name}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        reference_arm=config["reference_arm"],
        tasks=STUDY.tasks,
        arms=list(config["arms"]),
        comparison=config["comparison"],
        seed=config["training"]["seed"],
    message:
        f"Deciding about the arms of the study {STUDY.name}"
    script:
        "../workflow_scripts/evaluation/decide_arms.py"


rule tabulate_overview:
    input:
        comparison=f"{RESULTS}/tables/comparison.csv",
        significance=f"{RESULTS}/tables/significance.csv",
        code=code("evaluation/tabulate_overview.py"),
    output:
        csv=f"{RESULTS}/tables/overview.csv",
        md=report(
            f"{RESULTS}/tables/overview.md",
            caption="report/overview.rst",
            category="Tables",
            labels={"table": "Overview: tasks by arms"},
        ),
        tex=f"{RESULTS}/tables/overview.tex",
    log:
        f"logs/tabulate_overview/{STUDY.name}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    message:
        f"Tabulating the study {STUDY.name}"
    script:
        "../workflow_scripts/evaluation/tabulate_overview.py"


rule measure_targets:
    input:
        epochs=f"{RESULTS}/tables/epochs.csv",
        runs=f"{RESULTS}/tables/runs.csv",
        code=code("evaluation/measure_targets.py"),
    output:
        csv=f"{RESULTS}/tables/targets.csv",
        md=report(
            f"{RESULTS}/tables/targets.md",
            caption="report/targets.rst",
            category="Tables",
            labels={"table": "Time, energy and computation to target"},
        ),
    log:
        f"logs/measure_targets/{STUDY.name}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        reference_arm=config["reference_arm"],
        tasks=STUDY.tasks,
        arms=list(config["arms"]),
    message:
        f"Measuring the cost of reaching a target for each arm of the study {STUDY.name}"
    script:
        "../workflow_scripts/evaluation/measure_targets.py"


rule measure_budgets:
    input:
        runs=f"{RESULTS}/tables/runs.csv",
        code=code("evaluation/measure_budgets.py"),
    output:
        differences=f"{RESULTS}/tables/budget.csv",
        targets=f"{RESULTS}/tables/budget_targets.csv",
        md=f"{RESULTS}/tables/budget.md",
    log:
        f"logs/measure_budgets/{STUDY.name}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        reference_arm=config["reference_arm"],
    message:
        f"Comparing the arms of the study {STUDY.name} at equal cost"
    script:
        "../workflow_scripts/evaluation/measure_budgets.py"


rule separate_variance:
    input:
        runs=f"{RESULTS}/tables/runs.csv",
        code=code("evaluation/separate_variance.py"),
    output:
        table=report(
            f"{RESULTS}/tables/variance.csv",
            caption="report/variance.rst",
            category="Tables",
            labels={"table": "Spread due to folds and seeds"},
        ),
    log:
        f"logs/separate_variance/{STUDY.name}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        reference_arm=config["reference_arm"],
        tasks=STUDY.tasks,
        arms=list(config["arms"]),
    message:
        f"Separating the variance due to seeds and folds in the study {STUDY.name}"
    script:
        "../workflow_scripts/evaluation/separate_variance.py"


rule check_claims:
    input:
        runs=f"{RESULTS}/tables/runs.csv",
        epochs=f"{RESULTS}/tables/epochs.csv",
        claims=shipped("config/published/claims.yaml"),
        schema=shipped("config/schemas/claims.schema.yaml"),
        nnunet_runs=shipped("config/published/nnunet_runs.tsv"),
        code=code("evaluation/check_claims.py"),
    output:
        csv=report(
            f"{RESULTS}/tables/claims.csv",
            caption="report/claims.rst",
            category="Tables",
            labels={"table": "Published claims"},
        ),
        md=f"{RESULTS}/tables/claims.md",
        reference_runs=report(
            f"{RESULTS}/tables/reference_runs.csv",
            caption="report/reference_runs.rst",
            category="Tables",
            labels={"table": "Reference arm and published nnU-Net"},
        ),
    log:
        f"logs/check_claims/{STUDY.name}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        own={own["data_set"]: task for task, own in config["own_tasks"].items() if own["data_set"]},
    message:
        f"Checking published claims against the study {STUDY.name}"
    script:
        "../workflow_scripts/evaluation/check_claims.py"


rule measure_class_balance:
    input:
        plans=[STUDY.plans(task) for task in STUDY.tasks],
        datasets=[STUDY.raw(task) for task in STUDY.tasks],
        manifests=[STUDY.manifest(task) for task in STUDY.tasks],
    output:
        table=report(
            f"{RESULTS}/tables/class_balance.csv",
            caption="report/class_balance_table.rst",
            category="Tables",
            labels={"table": "Foreground by patch size"},
        ),
    log:
        f"logs/measure_class_balance/{STUDY.name}.log",
    conda:
        "../envs/nnunet.yaml"
    resources:
        **JOBS.of("measure_class_balance"),
    params:
        tasks=STUDY.tasks,
        data_identifier=STUDY.data_identifier,
        configuration=STUDY.configuration,
        oversample=0.33,  # nnU-Net's own share of forced patches
        samples=200,
        seed=config["training"]["seed"],
    message:
        "Measuring the foreground in patches of each size"
    script:
        "../workflow_scripts/evaluation/measure_class_balance.py"
