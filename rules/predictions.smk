"""
This part of the workflow draws slices of the worst, median and best case with their predictions.

REQUIRED INPUTS:

    results/{study}/tables/{runs,cases}.csv, config/plotting.yaml
    images and references in resources/nnUNet_raw/{dataset}/, and the predictions in the runs'
    nnU-Net folders

OUTPUTS:

    results/{study}/figures/predictions.{svg,png}
"""


rule plot_predictions:
    input:
        runs="results/{study}/tables/runs.csv",
        cases="results/{study}/tables/cases.csv",
        style="config/plotting.yaml",
        modules="workflow_scripts/plotting.py",
    output:
        svg="results/{study}/figures/predictions.svg",
        png=report(
            "results/{study}/figures/predictions.png",
            caption="report/predictions.rst",
            category="Figures",
            labels={"figure": "Example slices"},
        ),
    log:
        "logs/plot_predictions/{study}.log",
    conda:
        "../envs/analysis.yaml"
    resources:
        mem_mb=REQUESTS.memory_mb,
        runtime=REQUESTS.minutes,
        disk_mb=REQUESTS.disk_mb,
    params:
        raw="resources/nnUNet_raw",
        reference_arm=config["reference_arm"],
    script:
        "../workflow_scripts/plot_predictions.py"
