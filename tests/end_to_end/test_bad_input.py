"""Unusable archives with the real command: one clear message, and nothing is lost."""

import hashlib
import io
import json
import tarfile

import nibabel
import numpy as np
import pytest

from helpers.quick_study import quick_snakemake
from helpers.tree import said

TASK = "Task02_Heart"
CASES = ["la_003", "la_004"]
OWN_WORDS = "Error: "
NO_NETWORK = {
    **dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9"),
    **dict.fromkeys(("no_proxy", "NO_PROXY"), ""),
}


def nifti(values):
    return nibabel.Nifti1Image(values, np.eye(4)).to_bytes()


def members(labels=None, shape=(8, 9, 10)):
    """Return the files of a small task; `labels` replaces the second case's label."""
    random = np.random.default_rng(1)
    files = {}
    for case in CASES:
        image = random.integers(0, 100, (8, 9, 10)).astype(np.int16)
        label = random.integers(0, 2, (8, 9, 10)).astype(np.uint8)
        if case == CASES[1]:
            label = np.resize(label, shape)
            label.flat[:3] = 1 if labels is None else labels
        files[f"{TASK}/imagesTr/{case}.nii.gz"] = gz(nifti(image))
        files[f"{TASK}/labelsTr/{case}.nii.gz"] = gz(nifti(label))
    description = {
        "name": "Heart",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "left atrium"},
        "numTraining": 2,
        "numTest": 0,
        "training": [
            {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}
            for case in CASES
        ],
        "test": [],
    }
    return {f"{TASK}/dataset.json": json.dumps(description).encode(), **files}


def gz(data):
    import gzip

    return gzip.compress(data, mtime=0)


def tar(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def without(files, name):
    return {key: value for key, value in files.items() if not key.endswith(name)}


WHOLE = tar(members())
UNUSABLE = {
    "truncated archive": (
        lambda: WHOLE[: len(WHOLE) // 2],
        [f"resources/archives/{TASK}.tar", "truncated"],
    ),
    "no archive at all": (lambda: b"<html>404</html>" * 99, [f"{TASK}.tar", "not a tar archive"]),
    "member that leaves the folder": (
        lambda: tar(members() | {"../evil": b"evil"}),
        [f"{TASK}.tar", "../evil", "refused"],
    ),
    "member of another task": (
        lambda: tar(members() | {"Task03_Liver/x": b""}),
        [f"{TASK}.tar", "Task03_Liver/x", "refused"],
    ),
    "no dataset.json": (lambda: tar(without(members(), "dataset.json")), [TASK, "dataset.json"]),
    "missing label file": (
        lambda: tar(without(members(), f"labelsTr/{CASES[1]}.nii.gz")),
        [TASK, f"{CASES[1]}: labelsTr/{CASES[1]}.nii.gz is missing"],
    ),
    "label value outside dataset.json": (
        lambda: tar(members(labels=7)),
        [TASK, f"{CASES[1]}: label values 7 are not declared"],
    ),
    "shapes differ": (
        lambda: tar(members(shape=(8, 9, 11))),
        [TASK, f"{CASES[1]}: image shape (8, 9, 10) and label shape (8, 9, 11) differ"],
    ),
}


@pytest.fixture
def tree(tmp_path):
    """A folder in which an earlier study has left its results."""
    folder = tmp_path / "tree"
    folder.mkdir()
    for name in ("results/earlier/tables/runs.csv", "resources/archives/Task05_Prostate.tar"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("made before")
    return folder


def made(folder):
    """Return the files below results/ and resources/."""
    files = [path for part in ("results", "resources") for path in (folder / part).rglob("*")]
    return {str(path.relative_to(folder)) for path in files if not path.is_dir()}


def prepare(tree, archive=None, accepted=True, env=None):
    """Let Snakemake unpack and check the task from a folder with `archive` (bytes)."""
    archives = tree.parent / "archives"
    archives.mkdir(exist_ok=True)
    config = [f"tasks=[{TASK}]", f"archives={archives}"]
    if archive is not None:
        (archives / f"{TASK}.tar").write_bytes(archive)
        if accepted:
            md5 = hashlib.md5(archive).hexdigest()
            config.append(f"checksums={{{TASK}: '{md5}'}}")
    run = quick_snakemake(
        tree,
        *("--cores", 1, "--configfile", "config/studies/paper.yaml", "--config", *config),
        *("--", f"resources/msd/{TASK}"),
        env=env,
    )
    if archive is not None:
        assert (archives / f"{TASK}.tar").read_bytes() == archive
    return run


def the_error(run):
    """Return the one message that is not Snakemake's own, with its indented lines."""
    assert run.returncode != 0
    assert "Traceback" not in run.stderr
    lines = said(run.stderr)
    (start,) = [i for i, line in enumerate(lines) if line.startswith(OWN_WORDS)]
    end = next(i for i in range(start + 1, len(lines)) if not lines[i].startswith("  "))
    return "\n".join(lines[start:end])


def test_a_good_archive_passes(tree):
    run = prepare(tree, WHOLE)
    assert run.returncode == 0, run.stderr
    assert (tree / f"resources/msd/{TASK}/labelsTr/{CASES[1]}.nii.gz").is_file()


@pytest.mark.parametrize(("archive", "words"), UNUSABLE.values(), ids=UNUSABLE)
def test_an_archive_that_cannot_be_used_is_refused_by_name(tree, archive, words):
    before = made(tree)
    error = the_error(prepare(tree, archive()))
    assert [word for word in words if word not in error] == [], error
    assert made(tree) == before | {f"resources/archives/{TASK}.tar"}
    assert list(tree.parent.rglob("evil")) == []
    log = tree / f"logs/extract_task/{TASK}.log"
    assert error.splitlines()[0] in log.read_text()


def test_a_repaired_archive_goes_on(tree):
    the_error(prepare(tree, WHOLE[: len(WHOLE) // 2]))
    run = prepare(tree, WHOLE)
    assert run.returncode == 0, run.stderr


def test_a_wrong_checksum_names_both(tree):
    before = made(tree)
    error = the_error(prepare(tree, WHOLE, accepted=False))
    assert "expected md5 06ee59366e1e5124267b774dbd654057" in error
    assert f"found {hashlib.md5(WHOLE).hexdigest()}" in error
    assert str(tree.parent / f"archives/{TASK}.tar") in error
    assert made(tree) == before


def test_no_network_and_no_archive(tree):
    before = made(tree)
    error = the_error(prepare(tree, env=NO_NETWORK))
    assert f"{TASK}.tar could not be downloaded" in error
    assert "archives" in error
    assert made(tree) == before


def test_a_download_is_tried_again(tree):
    run = quick_snakemake(
        tree,
        *("--cores", 1, "--configfile", "config/studies/paper.yaml", "--config", f"tasks=[{TASK}]"),
        *("--", f"resources/msd/{TASK}"),
        env=NO_NETWORK,
    )
    assert run.returncode != 0
    errors = [line for line in said(run.stderr) if line.startswith(OWN_WORDS)]
    assert len(errors) == 3
    assert f"{TASK}.tar could not be downloaded" in errors[0]
    assert set(errors) == {errors[0]}


def test_a_folder_of_archives_that_is_not_there(tree):
    run = quick_snakemake(
        tree,
        *("--cores", 1, "--configfile", "config/studies/paper.yaml"),
        *("--config", f"tasks=[{TASK}]", "archives=nowhere", "--", f"resources/msd/{TASK}"),
    )
    assert "archives: nowhere is not a folder" in the_error(run)
