"""
This part of the workflow draws the figures, each from tidy tables as .svg and .png.

REQUIRED INPUTS:

    results/{study}/tables/{runs,cases,epochs,comparison,class_balance}.csv
    config/plotting.yaml, all that is about looks: an edit redraws figures and nothing before them

OUTPUTS:

    results/{study}/figures/{dice,cost,convergence,schedule,class_balance}.{svg,png}
"""


rule plot_dice:
    input:
        runs="results/{study}/tables/runs.csv",
        style="config/plotting.yaml",
        modules="workflow_scripts/plotting.py",
    output:
        svg="results/{study}/figures/dice.svg",
        png=report(
            "results/{study}/figures/dice.png",
            caption="report/dice.rst",
            category="Figures",
            labels={"figure": "Dice by task and arm"},
        ),
    log:
        "logs/plot_dice/{study}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    script:
        "../workflow_scripts/plot_dice.py"


rule plot_cost:
    input:
        comparison="results/{study}/tables/comparison.csv",
        style="config/plotting.yaml",
        modules="workflow_scripts/plotting.py",
    output:
        svg="results/{study}/figures/cost.svg",
        png=report(
            "results/{study}/figures/cost.png",
            caption="report/cost.rst",
            category="Figures",
            labels={"figure": "Cost by arm"},
        ),
    log:
        "logs/plot_cost/{study}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    script:
        "../workflow_scripts/plot_cost.py"


rule plot_convergence:
    input:
        epochs="results/{study}/tables/epochs.csv",
        style="config/plotting.yaml",
        modules="workflow_scripts/plotting.py",
    output:
        svg="results/{study}/figures/convergence.svg",
        png=report(
            "results/{study}/figures/convergence.png",
            caption="report/convergence.rst",
            category="Figures",
            labels={"figure": "Convergence"},
        ),
    log:
        "logs/plot_convergence/{study}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    script:
        "../workflow_scripts/plot_convergence.py"


rule plot_schedule:
    input:
        epochs="results/{study}/tables/epochs.csv",
        runs="results/{study}/tables/runs.csv",
        style="config/plotting.yaml",
        modules="workflow_scripts/plotting.py",
    output:
        svg="results/{study}/figures/schedule.svg",
        png=report(
            "results/{study}/figures/schedule.png",
            caption="report/schedule.rst",
            category="Figures",
            labels={"figure": "Patch-size schedules"},
        ),
    log:
        "logs/plot_schedule/{study}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    script:
        "../workflow_scripts/plot_schedule.py"


rule plot_class_balance:
    input:
        balance="results/{study}/tables/class_balance.csv",
        style="config/plotting.yaml",
        modules="workflow_scripts/plotting.py",
    output:
        svg="results/{study}/figures/class_balance.svg",
        png=report(
            "results/{study}/figures/class_balance.png",
            caption="report/class_balance.rst",
            category="Figures",
            labels={"figure": "Foreground by patch size"},
        ),
    log:
        "logs/plot_class_balance/{study}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    script:
        "../workflow_scripts/plot_class_balance.py"
