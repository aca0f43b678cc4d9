"""
This part of the workflow says how sure the results are, and what they mean for what was published.

REQUIRED INPUTS:

    results/{study}/runs/{task}/{arm}/fold_{fold}/{run,summary}.json, and the predictions of the
    validation cases in the nnU-Net folder that run.json names
    resources/nnUNet_raw/{dataset}/labelsTr/
    results/{study}/tables/{runs,cases}.csv
    config/published/{claims.yaml,nnunet_runs.tsv}, config/schemas/claims.schema.yaml

OUTPUTS:

    results/{study}/runs/{task}/{arm}/fold_{fold}/surface.csv    NSD of each validation case and label

and in results/{study}/tables/:

    significance.csv        every arm against the reference arm, paired over cases
    claims.{csv,md}         each published claim, what was measured, and a verdict
    reference_runs.csv      the reference arm beside published nnU-Net, by task and fold
"""

NSD_TOLERANCE_MM = {
    **{task: row["nsd_tolerance_mm"] for task, row in (MSD | config["own_tasks"]).items()},
    DEMO_TASK: "1",  # our own choice: half of its voxels' edge
}


rule measure_surface_distance:
    input:
        run="results/{study}/runs/{task}/{arm}/fold_{fold}/run.json",
        summary="results/{study}/runs/{task}/{arm}/fold_{fold}/summary.json",
        dataset=lambda wildcards: f"resources/nnUNet_raw/{DATASET_OF[wildcards.task]}/dataset.json",
    output:
        surface="results/{study}/runs/{task}/{arm}/fold_{fold}/surface.csv",
    log:
        "logs/measure_surface_distance/{study}_{task}_{arm}_{fold}.log",
    conda:
        "../envs/nnunet.yaml"
    resources:
        mem_mb=REQUESTS.memory_mb,
        runtime=REQUESTS.minutes,
        disk_mb=REQUESTS.disk_mb,
    params:
        tolerance_mm=lambda wildcards: NSD_TOLERANCE_MM[wildcards.task],
    message:
        "Measuring surface distances of {wildcards.task}, {wildcards.arm}, fold {wildcards.fold}"
    script:
        "../workflow_scripts/measure_surface_distance.py"


rule assess_significance:
    input:
        cases="results/{study}/tables/cases.csv",
        modules="workflow_scripts/paired.py",
    output:
        table=report(
            "results/{study}/tables/significance.csv",
            caption="report/significance.rst",
            category="Tables",
            labels={"table": "Significance of the differences"},
        ),
    log:
        "logs/assess_significance/{study}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        reference_arm=config["reference_arm"],
        tasks=config["tasks"],
        arms=list(config["arms"]),
        seed=config["training"]["seed"],
    message:
        "Assessing the differences between the arms of the study {wildcards.study}"
    script:
        "../workflow_scripts/assess_significance.py"


rule check_claims:
    input:
        runs="results/{study}/tables/runs.csv",
        claims="config/published/claims.yaml",
        schema="config/schemas/claims.schema.yaml",
        nnunet_runs="config/published/nnunet_runs.tsv",
        modules="workflow_scripts/claims.py",
    output:
        csv=report(
            "results/{study}/tables/claims.csv",
            caption="report/claims.rst",
            category="Tables",
            labels={"table": "Published claims"},
        ),
        md="results/{study}/tables/claims.md",
        reference_runs=report(
            "results/{study}/tables/reference_runs.csv",
            caption="report/reference_runs.rst",
            category="Tables",
            labels={"table": "Reference arm beside published nnU-Net"},
        ),
    log:
        "logs/check_claims/{study}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    message:
        "Checking published claims against the study {wildcards.study}"
    script:
        "../workflow_scripts/check_claims.py"
