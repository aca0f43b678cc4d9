"""Metered jobs run one at a time, however the workflow is started."""

import pytest

from helpers.tree import ROOT, dry_run, snakemake

INCLUDED = f"include: '{ROOT}/rules/common.smk'\n"
MODULE = f"""
module study:
    snakefile: '{ROOT}/Snakefile'
    config: config
use rule * from study as study_*
"""
LIMIT = """
print("limit:", workflow.global_resources["power_meter"].value)
print("local:", workflow.resource_scopes.is_local("power_meter"))
"""


@pytest.mark.parametrize("text", [INCLUDED, MODULE], ids=["included", "module"])
@pytest.mark.parametrize(
    ("given", "limit"), [([], 1), (["mem_mb=16000"], 1), (["power_meter=2", "mem_mb=16000"], 2)]
)
def test_the_limit_does_not_depend_on_a_profile(tmp_path, text, given, limit):
    """A cluster counts it for each machine, not for all jobs together."""
    rule = "rule nothing:\n    shell: 'true'\n"
    (tmp_path / "Snakefile").write_text(text + LIMIT + rule)
    resources = ["--resources", *given] if given else []
    config = ["--configfile", ROOT / "config/studies/demo.yaml"]
    run = dry_run(tmp_path, "nothing", "--cores", "2", *resources, *config)
    assert f"limit: {limit}\n" in run.stdout, run.stdout + run.stderr
    assert "local: True" in run.stdout


JOB = """
rule both:
    default_target: True
    input: expand("{n}.txt", n=[1, 2])
rule metered:
    output: "{n}.txt"
    resources: power_meter=1
    shell: "date +%s.%N > {output}; sleep 1; date +%s.%N >> {output}"
"""


def test_two_metered_jobs_never_overlap(tmp_path):
    (tmp_path / "Snakefile").write_text(INCLUDED + JOB)
    config = ["--configfile", str(ROOT / "config/studies/demo.yaml")]
    run = snakemake(tmp_path, "--cores", "2", "--resources", "mem_mb=16000", *config)
    assert run.returncode == 0, run.stderr
    first, second = sorted(
        tuple(map(float, (tmp_path / f"{n}.txt").read_text().split())) for n in (1, 2)
    )
    assert first[1] <= second[0]
