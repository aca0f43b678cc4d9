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
    rows = [line for line in text.splitlines() if re.match(r"\| constant +\| (22|84) ", line)]
    assert len(rows) == 4
    assert all(line in page.splitlines() for line in rows)
    assert "have an interval" in text
