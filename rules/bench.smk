"""
This part of the workflow measures the trainers side by side: `make bench`.

REQUIRED INPUTS, in resources/nnUNet_preprocessed/{dataset}/:

    {plans}.json, {data_identifier}.manifest.json, splits_final.json of every task of the study

OUTPUTS:

    results/{study}/bench.csv, bench.md   ratios, their goals, and the machine
"""


rule bench_trainers:
    input:
        plans=[plans_file(task) for task in config["tasks"]],
        manifests=[manifest_file(task) for task in config["tasks"]],
        splits=[splits_file(task) for task in config["tasks"]],
    output:
        table=f"results/{STUDY}/bench.csv",
        page=f"results/{STUDY}/bench.md",
    log:
        f"logs/bench_trainers/{STUDY}.log",
    conda:
        "../envs/nnunet.yaml"
    threads: config["training"]["threads"]
    resources:
        gpu=0 if config["training"]["device"] == "cpu" else 1,
        power_meter=1,
        mem_mb=REQUESTS.memory_mb,
        runtime=REQUESTS.minutes,
        disk_mb=REQUESTS.disk_mb,
    params:
        runs=[
            {
                "task": task,
                "fold": config["folds"][0],
                "configuration": PLANNING["configuration"],
            }
            for task in config["tasks"]
        ],
        training={key: value for key, value in config["training"].items() if key != "threads"},
        energy=config["energy"],
        repeats=config["bench"]["repeats"],
        iterations=config["bench"]["iterations"],
    message:
        "Measuring the trainers on {params.runs}"
    script:
        "../workflow_scripts/bench_trainers.py"
