"""
This part of the workflow shows what the network sees: one patch of every task in the course of the training.

REQUIRED INPUTS, in resources/nnUNet_preprocessed/{dataset}/:

    {plans}.json, {data_identifier}.manifest.json and the preprocessed cases
    config/plotting.yaml for the looks

OUTPUTS:

    results/{study}/figures/patches.{svg,png}   a row a task and arm, from beginning to end
"""


rule plot_patches:
    input:
        plans=[plans_file(task) for task in config["tasks"]],
        manifests=[manifest_file(task) for task in config["tasks"]],
        style="config/plotting.yaml",
        modules=[
            "workflow_scripts/plotting.py",
            "workflow_scripts/trainers/curricula/bands.py",
            "workflow_scripts/trainers/curricula/lowpass.py",
            "workflow_scripts/trainers/curricula/schedules.py",
        ],
    output:
        svg="results/{study}/figures/patches.svg",
        png=report(
            "results/{study}/figures/patches.png",
            caption="report/patches.rst",
            category="Figures",
            labels={"figure": "Patches in the course of training"},
        ),
    log:
        "logs/plot_patches/{study}.log",
    conda:
        "../envs/nnunet.yaml"
    params:
        tasks=config["tasks"],
        data_identifier=DATA_IDENTIFIER,
        configuration=PLANNING["configuration"],
        arms={
            name: {
                "trainer": arm["trainer"],
                "parameters": arm["parameters"],
                "training": training_of(name),
            }
            for name, arm in config["arms"].items()
        },
    message:
        "Drawing patches in the course of training"
    script:
        "../workflow_scripts/plot_patches.py"
