"""Collect every run of a study in the tidy tables runs, cases, epochs, stages and energy."""

from pathlib import Path

from workflow_scripts.common.console import redirect
from workflow_scripts.records.run_reader import RunKey, read_study, tidy_tables


def collect_results(folders: dict[RunKey, Path], outputs: dict[str, Path]) -> None:
    """Read the runs and write one CSV per table.

    `folders` maps (task, arm, fold, seed) to the folder with the run's files; `outputs` maps table
    names to paths. If a run is incomplete, nothing is written and UserError is raised.
    """
    tables = tidy_tables(read_study(folders))
    for name, path in outputs.items():
        tables[name].to_csv(path, index=False)


if __name__ == "__main__":
    redirect(snakemake.log[0])
    collect_results(
        folders={
            (task, arm, int(fold), int(seed)): Path(record).parent
            for (task, arm, fold, seed), record in zip(
                snakemake.params.runs, snakemake.input.run, strict=True
            )
        },
        outputs={name: Path(path) for name, path in snakemake.output.items()},
    )
