"""Forecast hours, energy and emissions of a study before its first training."""

from pathlib import Path

from workflow_scripts.common import nnunet_setup
from workflow_scripts.common.console import announce, redirect
from workflow_scripts.common.files import write_csv
from workflow_scripts.forecast.forecast_page import to_markdown, total_line
from workflow_scripts.forecast.forecaster import Forecaster
from workflow_scripts.forecast.planned_study import ForecastStudy

if __name__ == "__main__":
    redirect(snakemake.log[0])

    nnunet_setup.configure(processes=1)

    study = ForecastStudy(**dict(snakemake.params.items()))
    listed = {name: Path(snakemake.input[name]) for name in ("plans", "runs", "loading")}
    forecaster = Forecaster.of(study, **listed)
    fitted = forecaster.calibration
    table = forecaster.rows(study.trained_arms())
    write_csv(table, Path(snakemake.output.csv))
    Path(snakemake.output.md).write_text(
        to_markdown(
            table,
            study=study.study,
            reference_arm=study.reference_arm,
            training=study.training,
            calibration=fitted,
            country=study.country,
            kg_per_kwh=forecaster.kg_per_kwh,
            pue=study.pue,
            workers=study.workers if forecaster.loading else None,
            arms=study.trained_arms().values(),
        ),
        encoding="utf-8",
    )
    announce(f"{snakemake.output.md}: {total_line(table, fitted)}")
