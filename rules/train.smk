"""
This part of the workflow trains one arm on one fold of one task and validates it.

REQUIRED INPUTS, in resources/nnUNet_preprocessed/{dataset}/:

    {plans}.json, {data_identifier}.manifest.json, splits_final.json

with a budget in the configuration it begins after results/{study}/forecast/within_budget.json is made,
and with `cluster.max_runtime_minutes` after the forecast that tells how much time to ask for

OUTPUTS, in results/{study}/runs/{task}/{arm}/fold_{fold}/:

    run.json      one record: versions, seed, plans hash, hardware, Dice, seconds, energy
    epochs.csv    one row a kept epoch, growing while it trains
    stages.csv    the same, summed a stage
    energy.csv    one row an attempt, phase and stage
    summary.json  nnU-Net's own validation summary

nnU-Net's own folder, results/{study}/nnunet/{arm}/, is on purpose no output: Snakemake deletes the outputs
of a failed job, and the checkpoints in it are what a repeated job goes on from.
"""


rule train_fold:
    input:
        plans=lambda wildcards: plans_file(wildcards.task),
        manifest=lambda wildcards: manifest_file(wildcards.task),
        splits=lambda wildcards: splits_file(wildcards.task),
        forecast=forecast_first,
    output:
        run="results/{study}/runs/{task}/{arm}/fold_{fold}/run.json",
        epochs="results/{study}/runs/{task}/{arm}/fold_{fold}/epochs.csv",
        stages="results/{study}/runs/{task}/{arm}/fold_{fold}/stages.csv",
        energy="results/{study}/runs/{task}/{arm}/fold_{fold}/energy.csv",
        summary="results/{study}/runs/{task}/{arm}/fold_{fold}/summary.json",
    log:
        "logs/train_fold/{study}_{task}_{arm}_{fold}.log",
    conda:
        "../envs/nnunet.yaml"
    threads: config["training"]["threads"]
    resources:
        gpu=0 if config["training"]["device"] == "cpu" else 1,
        power_meter=1 if config["energy"]["tracking_mode"] == "machine" else 0,
        mem_mb=REQUESTS.training_memory_mb,
        runtime=REQUESTS.training_minutes,
        disk_mb=REQUESTS.disk_mb,
    params:
        run=lambda wildcards: describe_run(wildcards),
        parameters=lambda wildcards: config["arms"][wildcards.arm]["parameters"],
        training=lambda wildcards: training_of(wildcards.arm),
        energy=config["energy"],
        mirroring=config["validation"]["mirroring"],
        results=lambda wildcards: f"results/{wildcards.study}/nnunet/{wildcards.arm}",
    message:
        "Training {wildcards.task}, {wildcards.arm}, fold {wildcards.fold}"
    script:
        "../workflow_scripts/train_fold.py"
