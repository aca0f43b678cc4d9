"""
This part of the workflow runs the notebooks and renders each as a single HTML file.

REQUIRED INPUTS:

    notebooks/{results,curricula,scale_space}.ipynb, and the tables and figures in results/{study}/
    that they show

OUTPUTS, in results/{study}/notebooks/:

    {results,curricula,scale_space}.ipynb   with outputs
    {results,curricula,scale_space}.html    self-contained

If a notebook fails, the partial notebook is in logs/. `snakemake --report` collects these pages
with the figures and tables. It can only be called after the run, so there is no rule for it.
"""

from workflow_scripts.study.scale_grid import transfers


rule run_results_notebook:
    input:
        notebook=shipped("notebooks/results.ipynb"),
        code=code("results.ipynb", "notebooks") + code("report/run_notebook.py"),
        comparison=f"{RESULTS}/tables/comparison.csv",
        comparison_md=f"{RESULTS}/tables/comparison.md",
        verdicts_md=f"{RESULTS}/tables/verdicts.md",
        ranks_md=f"{RESULTS}/tables/ranks.md",
        overview_md=f"{RESULTS}/tables/overview.md",
        significance=f"{RESULTS}/tables/significance.csv",
        claims_md=f"{RESULTS}/tables/claims.md",
        targets_md=f"{RESULTS}/tables/targets.md",
        runs=f"{RESULTS}/tables/runs.csv",
        energy=f"{RESULTS}/tables/energy.csv",
        decision=f"{RESULTS}/figures/decision.png",
        differences=f"{RESULTS}/figures/differences.png",
        dice=f"{RESULTS}/figures/dice.png",
        cost=f"{RESULTS}/figures/cost.png",
        convergence=f"{RESULTS}/figures/convergence.png",
        profiles=f"{RESULTS}/figures/profiles.png",
        predictions=f"{RESULTS}/figures/predictions.png",
    output:
        notebook=f"{RESULTS}/notebooks/results.ipynb",
        html=report(
            f"{RESULTS}/notebooks/results.html",
            caption="report/results_notebook.rst",
            category="Notebooks",
            labels={"notebook": "results"},
        ),
    log:
        f"logs/run_results_notebook/{STUDY.name}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        study=STUDY.name,
    message:
        "Running the notebook results"
    script:
        "../workflow_scripts/report/run_notebook.py"


use rule run_results_notebook as run_curricula_notebook with:
    input:
        notebook=shipped("notebooks/curricula.ipynb"),
        code=code("curricula.ipynb", "notebooks") + code("report/run_notebook.py"),
        runs=f"{RESULTS}/tables/runs.csv",
        stages=f"{RESULTS}/tables/stages.csv",
        balance=f"{RESULTS}/tables/class_balance.csv",
        schedule=f"{RESULTS}/figures/schedule.png",
        patches=f"{RESULTS}/figures/patches.png",
        class_balance=f"{RESULTS}/figures/class_balance.png",
    output:
        notebook=f"{RESULTS}/notebooks/curricula.ipynb",
        html=report(
            f"{RESULTS}/notebooks/curricula.html",
            caption="report/curricula_notebook.rst",
            category="Notebooks",
            labels={"notebook": "curricula"},
        ),
    log:
        f"logs/run_curricula_notebook/{STUDY.name}.log",
    localrule: True  # not inherited
    message:
        "Running the notebook curricula"


use rule run_results_notebook as run_scale_space_notebook with:
    input:
        **(
            {
                "transfer_md": f"{RESULTS}/tables/scale_transfer.md",
                "transfer_png": f"{RESULTS}/figures/scale_transfer.png",
            }
            if transfers(config)
            else {}
        ),
        notebook=shipped("notebooks/scale_space.ipynb"),
        code=code("scale_space.ipynb", "notebooks") + code("report/run_notebook.py"),
        choice=f"{RESULTS}/tables/scale_choice.csv",
        checks=f"{RESULTS}/tables/scale_checks.csv",
        scales_md=f"{RESULTS}/tables/scale_space.md",
        scales_png=f"{RESULTS}/figures/scale_space.png",
        comparisons_md=f"{RESULTS}/tables/scale_comparisons.md",
    output:
        notebook=f"{RESULTS}/notebooks/scale_space.ipynb",
        html=report(
            f"{RESULTS}/notebooks/scale_space.html",
            caption="report/scale_space_notebook.rst",
            category="Notebooks",
            labels={"notebook": "scale_space"},
        ),
    log:
        f"logs/run_scale_space_notebook/{STUDY.name}.log",
    localrule: True
    message:
        "Running the notebook scale_space"
