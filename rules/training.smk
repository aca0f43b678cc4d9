"""
This part of the workflow trains one arm on one fold of one task and validates it.

REQUIRED INPUTS, in resources/nnUNet_preprocessed/{dataset}/:

    {plans}.json, {data_identifier}.manifest.json, splits_final.json

No training starts before results/{study}/forecast/needs.json exists. With a budget it also waits for
within_budget.json, and with `cluster.max_runtime_minutes` for the forecast, which sets the run time of the job.

OUTPUTS, in results/{study}/runs/{task}/{arm}/fold_{fold}{seed_suffix}/:

    run.json      one record: versions, seed, plans hash, hardware, Dice, seconds, energy
    epochs.csv    one row per kept epoch, written while training
    stages.csv    the same, summed per stage
    energy.csv    one row per attempt, phase and stage
    summary.json  nnU-Net's own validation summary

nnU-Net's own folder, results/{study}/nnunet/{arm}/, is deliberately not an output: Snakemake
deletes the outputs of a failed job, and a repeated job resumes from the checkpoints in it.
"""


rule train_fold:
    input:
        plans=lambda wildcards: STUDY.plans(wildcards.task),
        manifest=lambda wildcards: STUDY.manifest(wildcards.task),
        splits=lambda wildcards: STUDY.splits(wildcards.task),
        checked=checked_first,
    output:
        run=f"{RUN}/run.json",
        epochs=f"{RUN}/epochs.csv",
        stages=f"{RUN}/stages.csv",
        energy=f"{RUN}/energy.csv",
        summary=f"{RUN}/summary.json",
    log:
        f"logs/train_fold/{STUDY.name}_{{task}}_{{arm}}_{{fold}}{{seed_suffix}}.log",
    conda:
        "../envs/nnunet.yaml"
    threads: config["training"]["threads"]
    resources:
        **JOBS.of("train_fold"),
    params:
        run=lambda wildcards: STUDY.run(wildcards.task, wildcards.arm, int(wildcards.fold)),
        parameters=lambda wildcards: STUDY.arm(wildcards.arm)["parameters"],
        training=lambda wildcards: STUDY.training(wildcards.arm, wildcards.seed_suffix),
        energy=config["energy"],
        mirroring=config["validation"]["mirroring"],
        results=lambda wildcards: STUDY.results(wildcards.arm, wildcards.seed_suffix),
    message:
        "Training {wildcards.task}, {wildcards.arm}, fold {wildcards.fold}, seed {params.training[seed]}"
    script:
        "../workflow_scripts/training/train_fold.py"
