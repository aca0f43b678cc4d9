"""
This part of the workflow runs the notebooks and renders them as HTML pages of one file each.

REQUIRED INPUTS:

    notebooks/{results,curricula,scale_space}.ipynb, and of results/{study}/ the tables and figures
    that they show

OUTPUTS, in results/{study}/notebooks/:

    {results,curricula,scale_space}.ipynb   with outputs
    {results,curricula,scale_space}.html    self-contained

A notebook that fails is left as far as it came in logs/run_notebook/. `snakemake --report` gathers
these pages with the figures and tables; it can only be called after the run, so no rule makes it.
"""

SHOWN = {  # by notebook: the name of a parameter of the notebook and its file
    "results": {
        "comparison": f"results/{STUDY}/tables/comparison.csv",
        "comparison_md": f"results/{STUDY}/tables/comparison.md",
        "significance": f"results/{STUDY}/tables/significance.csv",
        "claims_md": f"results/{STUDY}/tables/claims.md",
        "runs": f"results/{STUDY}/tables/runs.csv",
        "energy": f"results/{STUDY}/tables/energy.csv",
        "dice": f"results/{STUDY}/figures/dice.png",
        "cost": f"results/{STUDY}/figures/cost.png",
        "convergence": f"results/{STUDY}/figures/convergence.png",
        "predictions": f"results/{STUDY}/figures/predictions.png",
    },
    "curricula": {
        "runs": f"results/{STUDY}/tables/runs.csv",
        "stages": f"results/{STUDY}/tables/stages.csv",
        "balance": f"results/{STUDY}/tables/class_balance.csv",
        "schedule": f"results/{STUDY}/figures/schedule.png",
        "patches": f"results/{STUDY}/figures/patches.png",
        "class_balance": f"results/{STUDY}/figures/class_balance.png",
    },
    "scale_space": {
        "choice": f"results/{STUDY}/tables/scale_choice.csv",
        "checks": f"results/{STUDY}/tables/scale_checks.csv",
        "scales_md": f"results/{STUDY}/tables/scale_space.md",
        "scales_png": f"results/{STUDY}/figures/scale_space.png",
        "comparisons_md": f"results/{STUDY}/tables/scale_comparisons.md",
    },
}
if transfers(config):
    SHOWN["scale_space"] |= {
        "transfer_md": f"results/{STUDY}/tables/scale_transfer.md",
        "transfer_png": f"results/{STUDY}/figures/scale_transfer.png",
    }


rule run_notebook:
    input:
        unpack(lambda wildcards: SHOWN[wildcards.notebook]),
        notebook="notebooks/{notebook}.ipynb",
    output:
        notebook="results/{study}/notebooks/{notebook}.ipynb",
        html=report(
            "results/{study}/notebooks/{notebook}.html",
            caption="report/notebook.rst",
            category="Notebooks",
            labels={"notebook": "{notebook}"},
        ),
    log:
        "logs/run_notebook/{study}_{notebook}.log",
    wildcard_constraints:
        notebook="|".join(SHOWN),
    localrule: True
    conda:
        "../envs/analysis.yaml"
    message:
        "Running the notebook {wildcards.notebook}"
    script:
        "../workflow_scripts/run_notebook.py"
