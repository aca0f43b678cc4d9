"""
This part of the workflow shows what the network sees: one patch of the first task in the course of the training.

REQUIRED INPUTS, in resources/nnUNet_preprocessed/{dataset}/:

    {plans}.json, {data_identifier}.manifest.json and the preprocessed cases
    config/plotting.yaml for the looks

OUTPUTS:

    results/{study}/figures/patches.{svg,png}   a row a schedule, from beginning to end
"""


rule plot_patches:
    input:
        plans=plans_file(config["tasks"][0]),
        manifest=manifest_file(config["tasks"][0]),
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
    localrule: True
    conda:
        "../envs/nnunet.yaml"
    params:
        task=config["tasks"][0],
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
