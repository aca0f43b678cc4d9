"""Reproduce Progressive Growing of Patch Size (Fischer et al., MICCAI 2024) with nnU-Net."""

from snakemake.utils import min_version

min_version("9.27")


report: "rules/report/workflow.rst"


include: "rules/common.smk"
include: "rules/data.smk"
include: "rules/planning.smk"
include: "rules/forecast.smk"
include: "rules/training.smk"
include: "rules/evaluation.smk"
include: "rules/figures.smk"
include: "rules/scale_space.smk"
include: "rules/search.smk"
include: "rules/export.smk"
include: "rules/report.smk"
include: "rules/benchmark.smk"
include: "rules/cleanup.smk"


rule all:
    default_target: True
    input:
        TABLES,
        FIGURES,
        NOTEBOOKS,


rule tables:
    input:
        TABLES,


rule figures:
    input:
        FIGURES,


rule notebooks:
    input:
        NOTEBOOKS,


rule plans:
    input:
        [STUDY.plans(task) for task in STUDY.tasks],


rule forecast:
    input:
        FORECAST,


rule fit:
    input:
        multiext(f"{RESULTS}/forecast/fit", ".csv", ".md", ".yaml"),


rule budget_sweep:
    input:
        multiext(f"{RESULTS}/figures/budget", ".svg", ".png"),
        multiext(f"{RESULTS}/tables/budget", ".csv", ".md"),


rule scale_space:
    input:
        multiext(f"{RESULTS}/tables/scale_space", ".csv", ".md"),
        multiext(f"{RESULTS}/figures/scale_space", ".svg", ".png"),
        multiext(f"{RESULTS}/notebooks/scale_space", ".ipynb", ".html"),


rule search_curriculum:
    input:
        multiext(f"{RESULTS}/search/search", ".csv", ".md"),
        f"{RESULTS}/search/arms.yaml",


rule bake:
    input:
        lambda wildcards: [
            path
            for task in STUDY.tasks
            for path in wanted_models(
                BAKED_MODEL, config, STUDY.dataset_of[task], STUDY.plans_name(task)
            )
        ],


rule export_models:
    input:
        EXPORTS,
