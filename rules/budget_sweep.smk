"""
This part of the workflow draws what a study finds whose arms differ in length: `snakemake budget_sweep`.

REQUIRED INPUTS:

    results/{study}/tables/runs.csv of a study such as config/budget_sweep.yaml

OUTPUTS:

    results/{study}/figures/budget.{svg,png}   Dice against energy, a line an arm
"""


rule plot_budget:
    input:
        runs="results/{study}/tables/runs.csv",
        style="config/plotting.yaml",
        modules="workflow_scripts/plotting.py",
    output:
        svg="results/{study}/figures/budget.svg",
        png="results/{study}/figures/budget.png",
    log:
        "logs/plot_budget/{study}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    script:
        "../workflow_scripts/plot_budget.py"
