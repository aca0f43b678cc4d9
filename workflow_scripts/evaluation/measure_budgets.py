"""Compare the arms of a sweep of training lengths at equal cost."""

from pathlib import Path

from workflow_scripts.common.console import redirect
from workflow_scripts.common.files import read_csv
from workflow_scripts.evaluation.budget_page import to_markdown
from workflow_scripts.evaluation.budget_statistics import (
    measure_differences,
    measure_final_targets,
)

if __name__ == "__main__":
    redirect(snakemake.log[0])
    trained = read_csv(snakemake.input.runs)
    compared_with = snakemake.params.reference_arm
    equal_cost = measure_differences(trained, compared_with)
    to_target = measure_final_targets(trained, compared_with)
    equal_cost.to_csv(snakemake.output.differences, index=False)
    to_target.to_csv(snakemake.output.targets, index=False)
    Path(snakemake.output.md).write_text(
        to_markdown(equal_cost, to_target, trained), encoding="utf-8"
    )
