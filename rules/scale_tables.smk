"""
This part of the workflow tabulates and draws what scale_space.smk has measured, by scale factor.

REQUIRED INPUTS, of a study with an arm of the trainer nnUNetTrainerScaleSpace:

    results/{study}/runs/…/run.json, results/{study}/scales/{task}/{arm}/fold_{fold}/*.json
    config/plotting.yaml

OUTPUTS, in results/{study}/:

    tables/scale_space.{csv,md}      accuracy and cost of inference, and what a reader must know
    tables/scale_choice.csv          the cheapest good enough scale factor
    tables/scale_checks.csv          whether the weights follow the scale factor
    tables/scale_costs.csv           cost of training
    tables/scale_comparisons.{csv,md}  the hypernetwork against its controls, paired over cases
    tables/scale_transfer.{csv,md}   Dice of weights in networks of other scale factors
    figures/scale_space.{svg,png}, figures/scale_transfer.{svg,png}

STEPS: tabulate_scales, compare_scales, plot_scales; tabulate_transfer, plot_transfer
"""

EVALUATIONS = [
    f"results/{STUDY}/scales/{task}/{arm}/fold_{fold}/scale_{scale}"
    for task, arm, fold, scale in evaluations(config)
]


rule tabulate_scales:
    input:
        evaluations=expand("{model}.json", model=EVALUATIONS),
        runs=run_files("run.json"),
        modules="workflow_scripts/scale_tables.py",
    output:
        csv="results/{study}/tables/scale_space.csv",
        md=report(
            "results/{study}/tables/scale_space.md",
            caption="report/scale_space.rst",
            category="Scale space",
            labels={"result": "Accuracy and cost by scale factor"},
        ),
        choice="results/{study}/tables/scale_choice.csv",
        checks="results/{study}/tables/scale_checks.csv",
        costs="results/{study}/tables/scale_costs.csv",
    log:
        "logs/tabulate_scales/{study}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        arms=config["arms"],
        tolerance=config["scale_space"]["tolerance"],
        mirroring=config["validation"]["mirroring"],
    script:
        "../workflow_scripts/tabulate_scales.py"


rule compare_scales:
    input:
        evaluations=expand("{model}.json", model=EVALUATIONS),
        summaries=expand("{model}.summary.json", model=EVALUATIONS),
        runs=run_files("run.json"),
        modules=expand("workflow_scripts/{module}.py", module=["paired", "scale_study"]),
    output:
        csv="results/{study}/tables/scale_comparisons.csv",
        md=report(
            "results/{study}/tables/scale_comparisons.md",
            caption="report/scale_comparisons.rst",
            category="Scale space",
            labels={"result": "The hypernetwork against its controls"},
        ),
    log:
        "logs/compare_scales/{study}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        arms=config["arms"],
        seed=config["training"]["seed"],
    script:
        "../workflow_scripts/compare_scales.py"


rule plot_scales:
    input:
        scales="results/{study}/tables/scale_space.csv",
        style="config/plotting.yaml",
        modules="workflow_scripts/plotting.py",
    output:
        svg="results/{study}/figures/scale_space.svg",
        png=report(
            "results/{study}/figures/scale_space.png",
            caption="report/scale_space.rst",
            category="Scale space",
            labels={"result": "Dice by cost of inference"},
        ),
    log:
        "logs/plot_scales/{study}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    script:
        "../workflow_scripts/plot_scales.py"


rule tabulate_transfer:
    input:
        evaluations=[
            f"results/{STUDY}/scales/{task}/{arm}/fold_{fold}/weights_{weights}_at_{scale}.json"
            for task, arm, fold, weights, scale in transfers(config)
        ],
        modules="workflow_scripts/scale_tables.py",
    output:
        csv="results/{study}/tables/scale_transfer.csv",
        md=report(
            "results/{study}/tables/scale_transfer.md",
            caption="report/scale_transfer.rst",
            category="Scale space",
            labels={"result": "Weights in other networks"},
        ),
    log:
        "logs/tabulate_transfer/{study}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    script:
        "../workflow_scripts/tabulate_transfer.py"


rule plot_transfer:
    input:
        transfer="results/{study}/tables/scale_transfer.csv",
        style="config/plotting.yaml",
        modules="workflow_scripts/plotting.py",
    output:
        svg="results/{study}/figures/scale_transfer.svg",
        png=report(
            "results/{study}/figures/scale_transfer.png",
            caption="report/scale_transfer.rst",
            category="Scale space",
            labels={"result": "Weights in other networks, drawn"},
        ),
    log:
        "logs/plot_transfer/{study}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    script:
        "../workflow_scripts/plot_transfer.py"
