"""Reproduce Progressive Growing of Patch Size (Fischer et al., MICCAI 2024) with nnU-Net."""

from snakemake.utils import min_version

min_version("9.27")

# Only without --configfile: Snakemake merges configurations key by key.
if not workflow.configfiles:

    configfile: "config/demo.yaml"


report: "rules/report/workflow.rst"


include: "rules/common.smk"
include: "rules/data.smk"
include: "rules/plan.smk"
include: "rules/forecast.smk"
include: "rules/train.smk"
include: "rules/results.smk"
include: "rules/evidence.smk"
include: "rules/figures.smk"
include: "rules/predictions.smk"
include: "rules/patches.smk"
include: "rules/scale_space.smk"
include: "rules/scale_tables.smk"
include: "rules/report.smk"
include: "rules/budget_sweep.smk"
include: "rules/bench.smk"
include: "rules/clean.smk"


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
        [plans_file(task) for task in config["tasks"]],


rule forecast:
    input:
        FORECAST,


rule budget_sweep:
    input:
        expand(f"results/{STUDY}/figures/budget.{{kind}}", kind=["svg", "png"]),


rule scale_space:
    input:
        expand(f"results/{STUDY}/tables/scale_space.{{kind}}", kind=["csv", "md"]),
        expand(f"results/{STUDY}/figures/scale_space.{{kind}}", kind=["svg", "png"]),
        expand(f"results/{STUDY}/notebooks/scale_space.{{kind}}", kind=["ipynb", "html"]),


rule bake:
    input:
        lambda wildcards: [
            path
            for task in config["tasks"]
            for path in wanted_models(
                BAKED_MODEL, config, dataset=DATASET_OF[task], plans=plans_name(task)
            )
        ],
