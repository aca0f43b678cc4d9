"""
This part of the workflow collects the files of all runs in tidy tables, compares the arms and
measures the class balance.

REQUIRED INPUTS, of every run, in results/{study}/runs/{task}/{arm}/fold_{fold}/:

    run.json, epochs.csv, stages.csv, energy.csv, summary.json, surface.csv

and, for the class balance, in resources/nnUNet_preprocessed/{dataset}/: plans, preprocessed cases

OUTPUTS, in results/{study}/tables/:

    runs.csv                  one row a run
    cases.csv                 one row a validation case and label: Dice, NSD and counts
    epochs.csv, stages.csv, energy.csv    the runs' own tables, one below the other
    comparison.{csv,md,tex}   the arms against the reference arm, per task and overall
    class_balance.csv         foreground in patches of each curriculum size, as nnU-Net samples them
"""


rule collect_results:
    input:
        run=run_files("run.json"),
        epochs=run_files("epochs.csv"),
        stages=run_files("stages.csv"),
        energy=run_files("energy.csv"),
        summary=run_files("summary.json"),
        surface=run_files("surface.csv"),
        modules="workflow_scripts/results.py",
    output:
        runs="results/{study}/tables/runs.csv",
        cases="results/{study}/tables/cases.csv",
        epochs="results/{study}/tables/epochs.csv",
        stages="results/{study}/tables/stages.csv",
        energy="results/{study}/tables/energy.csv",
    log:
        "logs/collect_results/{study}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        runs=RUNS,
    message:
        "Collecting the results of the study {wildcards.study}"
    script:
        "../workflow_scripts/collect_results.py"


rule compare_arms:
    input:
        runs="results/{study}/tables/runs.csv",
        cases="results/{study}/tables/cases.csv",
    output:
        csv=report(
            "results/{study}/tables/comparison.csv",
            caption="report/comparison.rst",
            category="Tables",
            labels={"table": "Comparison of the arms"},
        ),
        md="results/{study}/tables/comparison.md",
        tex="results/{study}/tables/comparison.tex",
    log:
        "logs/compare_arms/{study}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        reference_arm=config["reference_arm"],
        tasks=config["tasks"],
        arms=list(config["arms"]),
    message:
        "Comparing the arms of the study {wildcards.study}"
    script:
        "../workflow_scripts/compare_arms.py"


rule measure_class_balance:
    input:
        plans=[plans_file(task) for task in config["tasks"]],
        datasets=[
            f"resources/nnUNet_raw/{DATASET_OF[task]}/dataset.json" for task in config["tasks"]
        ],
        manifests=[manifest_file(task) for task in config["tasks"]],
    output:
        table=report(
            "results/{study}/tables/class_balance.csv",
            caption="report/class_balance_table.rst",
            category="Tables",
            labels={"table": "Foreground by patch size"},
        ),
    log:
        "logs/measure_class_balance/{study}.log",
    conda:
        "../envs/nnunet.yaml"
    resources:
        mem_mb=REQUESTS.memory_mb,
        runtime=REQUESTS.minutes,
        disk_mb=REQUESTS.disk_mb,
    params:
        tasks=config["tasks"],
        data_identifier=DATA_IDENTIFIER,
        configuration=config["planning"]["configuration"],
        oversample=0.33,  # nnU-Net's own share of forced patches
        samples=200,
        seed=config["training"]["seed"],
    message:
        "Measuring the foreground in patches of each size"
    script:
        "../workflow_scripts/measure_class_balance.py"
