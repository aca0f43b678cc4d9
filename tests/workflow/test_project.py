"""Parts of a public project besides its code: a version, a CI, forms, current pictures."""

import re
import subprocess
import sys

import pytest
import yaml

from helpers.tree import ROOT, copy_tree
from workflow_scripts.common.version import workflow_version

CI = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
SCHEMAS = {
    ".github/workflows/ci.yml": "vendor.github-workflows",
    ".github/ISSUE_TEMPLATE/bug.yml": "vendor.github-issue-forms",
    ".github/ISSUE_TEMPLATE/results.yml": "vendor.github-issue-forms",
    "CITATION.cff": "vendor.citation-file-format",
}


def test_the_newest_version_of_the_changelog_is_that_of_the_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changelog = (ROOT / "CHANGELOG.md").read_text()
    number, date = re.search(r"^## \[(\d+\.\d+\.\d+)\] - ([\d-]+)$", changelog, re.M).groups()
    assert (number, date) == (workflow_version(), str(citation["date-released"]))


@pytest.mark.parametrize(("path", "schema"), SCHEMAS.items(), ids=SCHEMAS)
def test_files_of_services_follow_their_schemas(path, schema):
    arguments = ["--builtin-schema", schema, path]
    run = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if "invalid choice" in run.stderr or "Invalid value" in run.stderr:
        pytest.skip(f"this version of check-jsonschema does not have {schema}")
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_command_of_the_ci_is_run_here_too():
    """`.ci/run` contains them all, and commands that the service lacks."""
    here = {line.removeprefix("timed ") for line in (ROOT / ".ci/run").read_text().splitlines()}
    steps = [step for job in CI["jobs"].values() for step in job["steps"]]
    lines = [line for step in steps if "run" in step for line in step["run"].splitlines()]
    assert len(lines) >= 4
    assert "make test ALL=1" in here, "all tests; `make lint` runs some of them, too"
    parts = ("make lint", "make test")
    assert [line for line in lines if line not in here and not line.startswith(parts)] == []
    assert CI["jobs"]["tests"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert "shared" not in str(CI)


def test_the_picture_of_the_rules_is_current(tmp_path):
    """Redraw it with `snakemake --rulegraph | dot -Tsvg > docs/images/rulegraph.svg`.

    In a fresh clone: a finished checkpoint is not drawn.
    """
    run = subprocess.run(
        [sys.executable, "-m", "snakemake", "--rulegraph"],
        cwd=copy_tree(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    rules = set(re.findall(r'label = "(\w+)"', run.stdout))
    drawn = (ROOT / "docs/images/rulegraph.svg").read_text()
    assert len(rules) > 20
    assert set(re.findall(r">(\w+)</text>", drawn)) == rules
