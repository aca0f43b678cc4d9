"""The command of docs/explanation/evidence.md that recomputes shipped tables from their rows."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from helpers.tree import ROOT

PAGE = (ROOT / "docs/explanation/evidence.md").read_text()


def test_the_tables_of_the_sweep_follow_from_the_shipped_rows(tmp_path):
    (block,) = re.findall(r"```bash\n(mkdir -p again.*?)```", PAGE, re.DOTALL)
    snakemake = shlex.quote(str(Path(sys.executable).with_name("snakemake")))
    commands = re.sub(r"\bagain\b", shlex.quote(str(tmp_path)), block)
    commands = commands.replace(".venv/bin/snakemake", snakemake)
    subprocess.run(["bash", "-ec", commands], cwd=ROOT, check=True, capture_output=True)
    text = (tmp_path / "results/budget_sweep/tables/budget.md").read_text()
    page = (ROOT / "docs/results/budget_sweep.md").read_text()
    rows = [re.findall(r"[^|]*[^|\s]", line) for line in text.splitlines() if " steps " in line]
    cells = [[cell.strip() for cell in row] for row in rows if row[0].strip() == "constant"]
    assert [row[-4] for row in cells] == ["704 steps", "2688 steps"] * 2
    shown = [{cell.strip() for cell in line.split("|")} for line in page.splitlines()]
    assert all(any(set(row) <= line for line in shown) for row in cells)
    assert "have an interval" in text
