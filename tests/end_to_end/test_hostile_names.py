"""A tiny dataset whose cases and labels have names with a special meaning to most tools."""

import json
import re

import nibabel
import numpy as np
import pandas as pd
import pytest

from helpers.quick_study import quick_snakemake
from helpers.tiny_study import CONFIG
from helpers.tree import write_config

pytestmark = pytest.mark.ci

TASK = "Task503_Hostile"
CASES = [
    "1.3.6.1.4.1.9328.50.4.0170",
    "1.3.6.1.4.1.9328.50.4.0171",
    "sub-04.T1w",
    "sub-04.T2w",
    "007",
    "NA",
    "case [1] (old)",
    "a|b 100%s 'q' \"Q\" ü",
]
LABELS = [
    *("NA", "nan", "null", "12", "arm", "_hidden", "left | right", "50 %", "$x$ & $y$"),
    *("Übergang", "[x] *y* `z` <b>", "'q' \"Q\" \\ {}"),
]


def write_dataset(folder):
    """Write the dataset in nnU-Net's raw format: blocks of each label in noise."""
    for place in ("imagesTr", "labelsTr"):
        (folder / place).mkdir(parents=True)
    for number, case in enumerate(CASES):
        rng = np.random.default_rng(number)
        labels = np.zeros((24, 32, 24), np.uint8)
        for label in range(len(LABELS)):
            x, y, z = (6 * (label // 4) + 3, 8 * (label % 4), 6 + number % 3)
            labels[x : x + 5, y : y + 7, z : z + 8] = label + 1
        image = 10.0 * labels + rng.normal(size=labels.shape)
        affine = np.diag([1.5, 1.0, 2.0, 1.0])
        for name, data in (
            (f"imagesTr/{case}_0000", image.astype(np.float32)),
            (f"labelsTr/{case}", labels),
        ):
            nibabel.save(nibabel.Nifti1Image(data, affine), folder / f"{name}.nii.gz")
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0} | {name: n for n, name in enumerate(LABELS, start=1)},
        "numTraining": len(CASES),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    data = tmp_path_factory.mktemp("data") / "a folder"
    write_dataset(data)
    folder = tmp_path_factory.mktemp("hostile")
    config = {
        **CONFIG,
        "study": "hostile",
        "tasks": [TASK],
        "own_tasks": {TASK: {"folder": str(data), "nsd_tolerance_mm": 2}},
        "arms": {name: CONFIG["arms"][name] for name in ("constant", "progressive")},
        "folds": [0, 1],
    }
    config = write_config(folder, "hostile", config)
    run = quick_snakemake(folder, "--cores", "2", "--configfile", config)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder / "results/hostile"


def read(path):
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def test_every_case_and_label_is_in_the_tables_by_its_name(hostile):
    cases = read(hostile / "tables/cases.csv")
    validated = {"0": set(), "1": set()}
    for fold, case in zip(cases["fold"], cases["case"], strict=True):
        validated[fold].add(case)
    assert validated["0"].isdisjoint(validated["1"])
    assert validated["0"] | validated["1"] <= set(CASES)
    assert list(dict.fromkeys(cases["label_name"])) == LABELS
    assert (cases["nsd"] != "").any()
    compared = read(hostile / "tables/comparison.csv")
    for _, rows in compared[compared["label"] != ""].groupby(["task", "arm"]):
        assert rows["label_name"].tolist() == LABELS, "sorted by value: 10 follows 9"
    tests = read(hostile / "tables/significance.csv")
    assert set(tests["label_name"]) == {*LABELS, "foreground"}


def test_names_stand_in_markdown_and_latex_as_they_are(hostile):
    page = (hostile / "tables/comparison.md").read_text()
    table = page.partition("Dice by label")[2].partition("\n\n")[2].splitlines()
    columns = [len(re.findall(r"(?<!\\)\|", line)) for line in table[:4]]
    assert columns == [len(LABELS) + 2] * 4, "a | in a name must not end a cell"
    assert r"left \| right" in table[0]
    latex = (hostile / "tables/comparison.tex").read_text()
    assert r"50 \%" in latex
    assert r"\$x\$ \& \$y\$" in latex


def test_pages_and_figures_are_made(hostile):
    page = (hostile / "notebooks/curricula.html").read_text()
    for name in ("left | right", "$x$ &amp; $y$", "Übergang", "[x] *y* `z` &lt;b&gt;", "NA"):
        assert name in page, name
    assert (hostile / "figures/predictions.svg").stat().st_size > 10_000
