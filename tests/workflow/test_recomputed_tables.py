"""The command of docs/explanation/evidence.md that recomputes shipped tables from their rows."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd

from helpers.tree import ROOT

PAGE = (ROOT / "docs/explanation/evidence.md").read_text()


def test_the_tables_of_the_sweep_follow_from_the_shipped_rows(tmp_path):
    (block,) = re.findall(r"```bash\n(mkdir -p again.*?)```", PAGE, re.DOTALL)
    snakemake = shlex.quote(str(Path(sys.executable).with_name("snakemake")))
    commands = re.sub(r"\bagain\b", shlex.quote(str(tmp_path)), block)
    commands = commands.replace(".venv/bin/snakemake", snakemake)
    subprocess.run(["bash", "-ec", commands], cwd=ROOT, check=True, capture_output=True)
    text = (tmp_path / "results/budget_sweep/tables/budget.md").read_text()
    rows = [re.findall(r"[^|]*[^|\s]", line) for line in text.splitlines() if " steps " in line]
    cells = [[cell.strip() for cell in row] for row in rows if row[0].strip() == "constant"]
    assert [row[-4] for row in cells] == ["704 steps", "2688 steps"] * 2
    means = pd.read_csv(ROOT / "docs/results/data/budget_sweep_means.csv")
    shipped = means[means["arm"] == "constant"].to_dict("records")
    for row, wanted in zip(cells, shipped, strict=True):
        assert row[-4] == f"{wanted['training_steps']} steps"
        assert row[-5].split(" ± ")[0] == f"{wanted['dice_mean']:.3f}"
        watt_hours, unit = row[-2].split()
        assert (float(watt_hours), unit) == (float(f"{1000 * wanted['training_kwh']:.3g}"), "Wh")
    assert "have an interval" in text
