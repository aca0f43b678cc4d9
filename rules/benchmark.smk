"""
This part of the workflow measures the trainers side by side: `make bench`.

REQUIRED INPUTS, in resources/nnUNet_preprocessed/{dataset}/:

    {plans}.json, {data_identifier}.manifest.json, splits_final.json of every task of the study

OUTPUTS:

    results/{study}/bench.csv, bench.md       ratios, their goals, and the machine
    results/{study}/loading.csv, loading.md   loading of batches with the ten published plans
    results/{study}/gpu_check.json, gpu_check.md   code paths of the GPU, passed or failed: `make gpu-check`
"""


rule bench_trainers:
    input:
        plans=[STUDY.plans(task) for task in STUDY.tasks],
        manifests=[STUDY.manifest(task) for task in STUDY.tasks],
        splits=[STUDY.splits(task) for task in STUDY.tasks],
    output:
        table=f"{RESULTS}/bench.csv",
        page=f"{RESULTS}/bench.md",
    log:
        f"logs/bench_trainers/{STUDY.name}.log",
    conda:
        "../envs/nnunet.yaml"
    threads: config["training"]["threads"]
    resources:
        **JOBS.of("bench_trainers"),
    params:
        runs=[
            {
                "task": task,
                "fold": config["folds"][0],
                "configuration": STUDY.configuration,
            }
            for task in STUDY.tasks
        ],
        training={key: value for key, value in config["training"].items() if key != "threads"},
        energy=config["energy"],
        repeats=config["bench"]["repeats"],
        iterations=config["bench"]["iterations"],
        peer=config["bench"]["peer"],
    message:
        "Measuring the trainers on {params.runs}"
    script:
        "../workflow_scripts/benchmark/bench_trainers.py"


rule bench_loading:
    input:
        plans=shipped("config/published/nnunet_plans.tsv"),
    output:
        table=f"{RESULTS}/loading.csv",
        page=f"{RESULTS}/loading.md",
    log:
        f"logs/bench_loading/{STUDY.name}.log",
    conda:
        "../envs/nnunet.yaml"
    threads: config["training"]["threads"]  # all, so that nothing else runs meanwhile
    resources:
        **JOBS.of("bench_loading"),
    params:
        seconds=config["bench"]["loading_seconds"],
        stages=config["bench"]["loading_stages"],
    message:
        "Measuring the loading of batches on the published plans"
    script:
        "../workflow_scripts/benchmark/bench_loading.py"


rule gpu_check:
    input:
        plans=[STUDY.plans(task) for task in STUDY.tasks],
        manifests=[STUDY.manifest(task) for task in STUDY.tasks],
        splits=[STUDY.splits(task) for task in STUDY.tasks],
    output:
        report=f"{RESULTS}/gpu_check.json",
        page=f"{RESULTS}/gpu_check.md",
    log:
        f"logs/gpu_check/{STUDY.name}.log",
    conda:
        "../envs/nnunet.yaml"
    threads: config["training"]["threads"]
    resources:
        **JOBS.of("gpu_check"),
    params:
        runs=[
            {
                "task": task,
                "fold": config["folds"][0],
                "configuration": STUDY.configuration,
            }
            for task in STUDY.tasks
        ],
        arms={
            name: {key: arm[key] for key in ("trainer", "parameters")}
            for name, arm in config["arms"].items()
        },
        training={key: value for key, value in config["training"].items() if key != "threads"},
        energy=config["energy"],
        iterations=config["bench"]["iterations"],
    message:
        "Checking the GPU code paths on {params.runs}"
    script:
        "../workflow_scripts/benchmark/gpu_check.py"
