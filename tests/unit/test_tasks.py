"""The register of the MSD tasks, read as the workflow reads it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from workflow_scripts.study.tasks import read_register

ROOT = Path(__file__).parents[2]
REGISTER = read_register(ROOT / "config/tables/datasets.tsv")
ROWS = pytest.mark.parametrize("row", REGISTER.values(), ids=REGISTER)


def test_ten_tasks_in_order():
    assert [int(task[4:6]) for task in REGISTER] == list(range(1, 11))


@ROWS
def test_row_is_complete(row):
    task, dataset = row["task"], row["dataset"]
    number, name = re.fullmatch(r"Task(\d\d)_([A-Za-z]+)", task).groups()
    assert dataset == f"Dataset{int(number):03d}_{name}"
    assert row["url"] == f"https://msd-for-monai.s3-us-west-2.amazonaws.com/{task}.tar"
    assert re.fullmatch(r"[0-9a-f]{32}", row["md5"])
    assert row["modality"].split()[0] in ("MRI", "CT")
    assert row["target"]
    assert row["licence"] == "CC-BY-SA-4.0"
    assert int(row["cases"]) > 0
    # A tar archive is a multiple of 512 bytes; the cell is empty if the size is not known.
    assert row["bytes"] == "" or int(row["bytes"]) % 512 == 0
    # Empty if no source for MSD's own tolerance was available.
    assert row["nsd_tolerance_mm"] == "" or float(row["nsd_tolerance_mm"]) > 0


def test_no_two_tasks_share_a_checksum():
    assert len({row["md5"] for row in REGISTER.values()}) == len(REGISTER)


def test_reading_the_register_imports_only_the_standard_library():
    code = (
        "import sys; from workflow_scripts.study.tasks import read_register;"
        "read_register(sys.argv[1]);"
        "print(*[name for name in ('numpy', 'nibabel', 'pooch', 'tqdm') if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "config/tables/datasets.tsv")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == ""
