"""A tiny scale-space study, from trainings to page and baked model, by Snakemake."""

import json

import pandas as pd
import pytest

from helpers.quick_study import quick_snakemake
from helpers.tiny_study import CONFIG, TASK
from helpers.tree import write_config

TRAINER = "nnUNetTrainerScaleSpace"
CHANGES = {
    "study": "scales",
    "arms": {
        "constant": {"trainer": "nnUNetTrainerConstantPatch"},
        "scale_space": {
            "trainer": TRAINER,
            "parameters": {"rank": 2, "optimizer_name": "adamw"},
        },
        "fixed_025": {"trainer": TRAINER, "parameters": {"rank": 0, "scale_factor": 0.25}},
    },
    "scale_space": {
        "scales": [0.25, 0.5],
        "tolerance": 1,
        "transfer": {"scales": [0.25, 0.5], "cases": 1},
    },
}


pytestmark = pytest.mark.ci


@pytest.fixture(scope="module")
def scales(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scales")
    arguments = [
        "--cores",
        "2",
        "--configfile",
        write_config(folder, "scales", {**CONFIG, **CHANGES}),
    ]
    run = quick_snakemake(folder, "scale_space", *arguments)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder, arguments


def test_tables_figures_and_page_are_made(scales):
    tables = scales[0] / "results/scales/tables"
    table = pd.read_csv(tables / "scale_space.csv")
    found = list(zip(table["arm"], table["scale"].fillna(0), strict=True))
    expected = [("scale_space", 0.25), ("scale_space", 0.5), ("fixed_025", 0.25), ("constant", 0)]
    assert sorted(found) == sorted(expected)
    assert (table["seconds_per_case"] > 0).all()
    gmac = table.set_index(["arm", "scale"])["gmac_per_case"]
    dice = table.set_index(["arm", "scale"])["dice"]
    assert gmac["scale_space", 0.25] == gmac["fixed_025", 0.25] < gmac["scale_space", 0.5]
    check = pd.read_csv(tables / "scale_checks.csv")
    assert check["passed"].tolist() == [True]
    compared = pd.read_csv(tables / "scale_comparisons.csv").set_index(["scale", "other_arm"])
    assert set(compared.index) == {(0.25, "constant"), (0.5, "constant"), (0.25, "fixed_025")}
    difference = dice["scale_space", 0.25] - dice["fixed_025", 0.25]
    assert compared.loc[(0.25, "fixed_025"), "difference"] == pytest.approx(difference, abs=1e-6)
    transfer = pd.read_csv(tables / "scale_transfer.csv")
    assert len(transfer) == 4
    assert set(transfer["cases"]) == {1}
    page = (scales[0] / "results/scales/notebooks/scale_space.html").read_text()
    assert page.count("data:image/png;base64") == 2
    # At the largest scale factor, the evaluation equals nnU-Net's own validation.
    run = scales[0] / f"results/scales/runs/{TASK}/scale_space/fold_0/run.json"
    assert dice["scale_space", 0.5] == pytest.approx(
        json.loads(run.read_text())["dice_foreground_mean"], abs=1e-6
    )


def test_a_second_run_has_nothing_to_do_and_the_report_has_the_page(scales):
    folder, arguments = scales
    run = quick_snakemake(folder, "scale_space", "-n", *arguments)
    assert "Nothing to be done" in run.stdout + run.stderr
    run = quick_snakemake(folder, "scale_space", *arguments, "--report", "report.zip")
    assert run.returncode == 0, run.stderr
    assert (folder / "report.zip").stat().st_size > 50_000


def test_the_chosen_model_is_baked(scales):
    folder, arguments = scales
    run = quick_snakemake(folder, "bake", *arguments)
    assert run.returncode == 0, run.stdout + run.stderr
    (model,) = (folder / "results/scales/baked/scale_space/scale_chosen").glob("*/*")
    assert (model / "fold_0/checkpoint_final.pth").is_file()
    assert json.loads((model / "baked.json").read_text())["scale_factor"] == 0.25, (
        "all are within 1"
    )
    assert "nnUNetv2_predict_from_modelfolder" in run.stdout + run.stderr
