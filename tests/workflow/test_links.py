"""A clone behind a symbolic link, as in many clusters' home folders."""

import os
from pathlib import Path

import pytest

from helpers.tree import ROOT, plan, snakemake
from workflow_scripts.study.script_inputs import imported_modules

MODULE = """
module patch_curricula:
    snakefile: "{snakefile}"
    config: config["curricula"]

use rule * from patch_curricula as pgps_*
"""


@pytest.fixture
def linked(tmp_path):
    """A link to this clone, whose folder is behind a link too."""
    (tmp_path / "homes").mkdir()
    (tmp_path / "homes/clone").symlink_to(ROOT)
    (tmp_path / "home").symlink_to(tmp_path / "homes")
    return tmp_path / "home/clone"


def test_a_study_is_planned_through_a_link_as_without_it(linked, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    arguments = ["--configfile", linked / "config/studies/demo.yaml"]
    direct, text = plan(folder, "-s", ROOT / "Snakefile", *arguments)
    assert direct["train_fold"] == 6
    behind, text_behind = plan(tmp_path / "link", "-s", linked / "Snakefile", *arguments)
    assert behind == direct
    assert str(linked) not in text_behind.partition("Building DAG")[2]
    assert str(ROOT) in text  # the inputs keep the path of the clone, so nothing is rerun


def test_in_a_linked_working_directory_paths_are_relative(linked):
    """Also if the clone is its own working directory and only the Snakefile's path has a link."""
    _, text = plan(linked, "-s", linked / "Snakefile", "--directory", linked)
    assert "config/plotting.yaml" in text
    assert f"{ROOT}/config/plotting.yaml" not in text


def test_a_module_is_planned_through_a_link(linked, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "Snakefile").write_text(MODULE.format(snakefile=linked / "Snakefile"))
    config = (ROOT / "config/studies/demo.yaml").read_text()
    lines = "".join(f"  {line}\n" for line in config.splitlines())
    (folder / "study.yaml").write_text(f"curricula:\n{lines}")
    jobs, _ = plan(folder, "pgps_all", "--configfile", "study.yaml")
    assert jobs["pgps_train_fold"] == 6


def test_a_script_of_the_workflow_runs_through_a_link(linked, tmp_path):
    folder = tmp_path / "elsewhere"
    (tmp_path / "scratch").mkdir()
    folder.mkdir()
    for name in ("results", "resources", "logs"):
        (tmp_path / "scratch" / name).mkdir()
        (folder / name).symlink_to(tmp_path / "scratch" / name)
    (tmp_path / "temporary").symlink_to(tmp_path / "scratch")
    archive = "resources/archives/Task99_BrainTissue.tar"
    arguments = ["-s", linked / "Snakefile", "--cores", "1", archive]
    run = snakemake(
        folder,
        *(*arguments, "--config", "demo_task={cases: 5}"),
        env={"TMPDIR": str(tmp_path / "temporary")},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert (folder / archive).is_file()
    again = ["-s", ROOT / "Snakefile", archive, "--config", "demo_task={cases: 5}"]
    assert plan(folder, *again)[0] == {}


def test_modules_of_a_script_are_found_below_the_given_root(linked):
    script = "workflow_scripts/training/train_fold.py"
    direct = imported_modules(ROOT / script, ROOT)
    behind = imported_modules(linked / script, linked)
    assert len(direct) > 20
    assert [path.relative_to(linked) for path in behind] == [
        path.relative_to(ROOT) for path in direct
    ]


def test_the_commit_is_that_of_the_clone(linked):
    from workflow_scripts.training import provenance

    trainers = Path(os.path.relpath(provenance.TRAINERS, ROOT))
    found = provenance.git_commit()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "TRAINERS", linked / trainers)
        assert provenance.git_commit() == found
