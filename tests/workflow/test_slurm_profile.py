"""The profile for Slurm, as Snakemake reads it; no Slurm is needed."""

import re

import pytest
import yaml

from helpers.tree import ROOT, plan, trainings

TEXT = (ROOT / "profiles/slurm/config.yaml").read_text()
PROFILE = yaml.safe_load(TEXT)
PAPER = ("--profile", "profiles/slurm", "--configfile", "config/studies/paper.yaml")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return tmp_path_factory.mktemp("tree")


def test_no_cluster_is_baked_in():
    asked = [PROFILE["default-resources"], *PROFILE.get("set-resources", {}).values()]
    for resources in asked:
        assert not set(resources) - {"mem_mb", "runtime", "disk_mb"}
        assert "cpus_per_task" not in resources, "it would override the rules' threads"
    assert "slurm-array-jobs" not in PROFILE


def test_what_is_to_be_filled_in_is_yaml_when_its_mark_is_removed():
    start, end = (match.end() for match in re.finditer(r"^# -{5,}.*\n", TEXT, re.MULTILINE))
    block = re.sub(r"^( *)# ( *[a-z_-]+:(?: |$))", r"\1\2", TEXT[start:end], flags=re.MULTILINE)
    profile = yaml.safe_load(TEXT[:start] + block + TEXT[end:])
    assert profile.keys() > PROFILE.keys()
    assert profile["default-resources"].keys() > PROFILE["default-resources"].keys()
    assert set(profile["set-resources"]) <= rules()


def test_the_full_study_is_planned_in_few_jobs(tree):
    jobs, text = plan(tree, *PAPER)
    assert len(trainings(text)) == 450
    assert jobs["measure_surface_distance"] == 450
    groups = text.split("Group job surface_distance_")[1:]
    assert [group.count("Measuring surface distances") for group in groups] == 90 * [5]


def rules():
    found = set()
    for path in ROOT.glob("rules/*.smk"):
        found |= set(re.findall(r"^(?:rule|checkpoint) (\w+):", path.read_text(), re.MULTILINE))
    return found


def test_the_rules_that_it_names_exist():
    assert {*PROFILE["groups"], *PROFILE["preemptible-rules"]} <= rules()
    assert set(PROFILE["groups"].values()) == set(PROFILE["group-components"])


def test_one_machine_s_gpu_is_no_limit_for_all_jobs_together():
    default = yaml.safe_load((ROOT / "profiles/default/config.yaml").read_text())
    assert {"gpu", *default["resources"]} == set(PROFILE["set-resource-scopes"])
    assert set(PROFILE["set-resource-scopes"].values()) == {"local"}
