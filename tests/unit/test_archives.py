"""Fetching, unpacking and checking of MSD archives."""

import errno
import gzip
import hashlib
import http.server
import io
import json
import os
import shutil
import tarfile
import threading
from pathlib import Path

import nibabel
import numpy as np
import pooch
import pytest

from workflow_scripts.common.errors import UserError
from workflow_scripts.data.archives import extract_archive, fetch_archive
from workflow_scripts.data.conversion import check_conversion
from workflow_scripts.data.dataset_checks import check_dataset, read_description

TASK = "Task77_Cube"
NOWHERE = "http://127.0.0.1:9/Task77_Cube.tar"
SHAPE = (5, 6, 4)


def save(path, values, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)


def edit(folder, **changes):
    """Change entries of dataset.json; None removes one."""
    path = folder / "dataset.json"
    description = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: v for key, v in description.items() if v is not None}))


def pack(folder, archive):
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, arcname=folder.name)
    return archive


def md5(path):
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture
def dataset(tmp_path):
    """A sound MSD dataset of three tiny cases."""
    folder = tmp_path / "source" / TASK
    random = np.random.default_rng(0)
    cases = ["cube_001", "cube_002", "cube_003"]
    for case in cases:
        save(folder / f"imagesTr/{case}.nii.gz", random.normal(size=SHAPE).astype(np.float32))
        save(folder / f"labelsTr/{case}.nii.gz", random.integers(0, 3, SHAPE).astype(np.uint8))
    description = {
        "name": "Cube",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "one", "2": "two"},
        "numTraining": 3,
        "training": [
            {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}
            for case in cases
        ],
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.fixture
def local(dataset, tmp_path):
    """Folder of local archives with the archive of the sound dataset."""
    folder = tmp_path / "local"
    folder.mkdir()
    pack(dataset, folder / f"{TASK}.tar")
    return folder


# fetch_archive


def test_local_archive_is_linked_when_the_register_knows_it(local, tmp_path):
    archive = tmp_path / "resources" / f"{TASK}.tar"
    fetch_archive(TASK, NOWHERE, md5(local / f"{TASK}.tar"), archive, archives=local)
    assert archive.is_symlink()
    assert archive.readlink() == (local / f"{TASK}.tar").resolve()


def test_local_archive_with_further_checksum_is_accepted(local, tmp_path):
    archive = tmp_path / f"{TASK}.tar"
    found = md5(local / f"{TASK}.tar")
    fetch_archive(TASK, NOWHERE, "0" * 32, archive, archives=local, extra_md5=found)
    assert md5(archive) == found


def test_local_archive_with_wrong_checksum_is_refused_and_kept(local, tmp_path):
    source, archive = local / f"{TASK}.tar", tmp_path / "out" / f"{TASK}.tar"
    with pytest.raises(UserError) as error:
        fetch_archive(TASK, NOWHERE, "0" * 32, archive, archives=local)
    for text in (str(source), "0" * 32, md5(source), "checksums"):
        assert text in str(error.value)
    assert source.exists()
    assert list(archive.parent.iterdir()) == []


def test_archives_must_be_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"archives: .*absent is not a folder"):
        fetch_archive(TASK, NOWHERE, "0" * 32, tmp_path / "x.tar", archives=tmp_path / "absent")


def test_no_network_and_no_archive_says_what_to_do(tmp_path):
    archive = tmp_path / "out" / f"{TASK}.tar"
    with pytest.raises(UserError) as error:
        fetch_archive(TASK, NOWHERE, "0" * 32, archive, archives=tmp_path)
    for text in (NOWHERE, f"{TASK}.tar", "`archives`", "--config archives=DIR"):
        assert text in str(error.value)
    assert list(archive.parent.iterdir()) == []


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; the first `broken` answers are cut off in the middle."""

    content, broken, asked = b"", 0, 0


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked += 1
        whole = self.server.asked > self.server.broken
        content = self.server.content
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content if whole else content[: len(content) // 2])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(local):
    server = Server(("127.0.0.1", 0), Handler)
    server.content = (local / f"{TASK}.tar").read_bytes()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def url(server):
    return f"http://127.0.0.1:{server.server_port}/{TASK}.tar"


def test_download_that_breaks_off_leaves_nothing_and_can_be_tried_again(server, local, tmp_path):
    server.broken = 1
    archive = tmp_path / "out" / f"{TASK}.tar"
    with pytest.raises(UserError, match="could not be downloaded"):
        fetch_archive(TASK, url(server), md5(local / f"{TASK}.tar"), archive)
    assert list(archive.parent.iterdir()) == []
    fetch_archive(TASK, url(server), md5(local / f"{TASK}.tar"), archive)
    assert archive.read_bytes() == server.content
    assert list(archive.parent.iterdir()) == [archive]


@pytest.mark.parametrize("known", ["md5", "extra_md5"])
def test_download_of_either_checksum_is_accepted_and_made_once(server, local, tmp_path, known):
    archive = tmp_path / "out" / f"{TASK}.tar"
    accepted = {"md5": "0" * 32, "extra_md5": "1" * 32, known: md5(local / f"{TASK}.tar")}
    fetch_archive(TASK, url(server), archive=archive, **accepted)
    assert server.asked == 1
    assert archive.read_bytes() == server.content


def test_what_a_killed_download_left_is_removed(server, local, tmp_path):
    """So its name must be known: pooch's own files have random names, and archives 28 GB."""
    archive = tmp_path / f"{TASK}.tar"
    left = tmp_path / f".{TASK}.tar.partial"
    left.write_bytes(b"half of it")
    fetch_archive(TASK, url(server), md5(local / f"{TASK}.tar"), archive)
    assert not left.exists()
    assert archive.read_bytes() == server.content


def test_full_disk_of_a_download_is_named(server, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", full)
    archive = tmp_path / "out" / f"{TASK}.tar"
    with pytest.raises(UserError, match="the disk is full"):
        fetch_archive(TASK, url(server), "0" * 32, archive)
    assert list(archive.parent.iterdir()) == []


def test_download_with_wrong_checksum_leaves_nothing(server, local, tmp_path):
    archive = tmp_path / "out" / f"{TASK}.tar"
    with pytest.raises(UserError) as error:
        fetch_archive(TASK, url(server), "0" * 32, archive)
    assert "0" * 32 in str(error.value)
    assert md5(local / f"{TASK}.tar") in str(error.value)
    assert list(archive.parent.iterdir()) == []


# extract_archive


def member(name, data=b"x", kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = len(data) if kind == tarfile.REGTYPE else 0
    return info, io.BytesIO(data)


def add(archive, *members):
    with tarfile.open(archive, "a") as tar:
        for info, data in members:
            tar.addfile(info, data)


def test_archive_is_unpacked_without_clutter_and_test_images(dataset, local, tmp_path):
    archive = local / f"{TASK}.tar"
    add(
        archive,
        member(f"._{TASK}"),
        member(f"{TASK}/imagesTr/._cube_001.nii.gz"),
        member(f"{TASK}/.DS_Store"),
        member(f"{TASK}/imagesTs/cube_009.nii.gz"),
    )
    folder = tmp_path / "msd" / TASK
    extract_archive(archive, folder)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    expected = {str(path.relative_to(dataset)) for path in dataset.rglob("*")}
    assert names == expected | {"imagesTs"}
    assert check_dataset(folder) == 3
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (member("../evil"), rf"\.\./evil is not below {TASK}/"),
        (member(f"{TASK}/../evil"), rf"{TASK}/\.\./evil is not below {TASK}/"),
        (member(f"{TASK}/a/../../../evil"), f"evil is not below {TASK}/"),
        (member("/tmp/evil"), f"/tmp/evil is not below {TASK}/"),
        (member("Task01_Other/file"), f"is not below {TASK}/"),
        (member(f"{TASK}/l", kind=tarfile.SYMTYPE, link="/etc/passwd"), "link or device"),
        (member(f"{TASK}/l", kind=tarfile.LNKTYPE, link=f"{TASK}/dataset.json"), "link or device"),
        (member(f"{TASK}/d", kind=tarfile.CHRTYPE), "link or device"),
        (member(f"{TASK}/d", kind=tarfile.FIFOTYPE), "link or device"),
    ],
)
def test_dangerous_member_is_refused(local, tmp_path, bad, reason):
    archive = local / f"{TASK}.tar"
    add(archive, bad)
    folder = tmp_path / "msd" / TASK
    with pytest.raises(UserError, match=reason) as error:
        extract_archive(archive, folder)
    assert str(archive) in str(error.value)
    assert list(folder.parent.iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_every_truncation_is_noticed(local, tmp_path):
    archive, folder = local / f"{TASK}.tar", tmp_path / "msd" / TASK
    whole = archive.read_bytes()
    with tarfile.open(archive) as tar:
        offsets = [info.offset for info in tar] + [tar.offset]
    # At the start of each member, within its header and within its data.
    for cut in [offset + inner for offset in offsets for inner in (0, 100, 600)]:
        if cut < offsets[-1] + 512:
            archive.write_bytes(whole[:cut])
            with pytest.raises(UserError, match="truncated or not a tar archive"):
                extract_archive(archive, folder)
            assert list(folder.parent.iterdir()) == []


def test_file_that_is_no_archive_is_refused(tmp_path):
    archive = tmp_path / f"{TASK}.tar"
    archive.write_text("<html>not found</html>")
    with pytest.raises(UserError, match="truncated or not a tar archive"):
        extract_archive(archive, tmp_path / "msd" / TASK)


def test_full_disk_is_named(local, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfileobj", full)
    folder = tmp_path / "msd" / TASK
    with pytest.raises(UserError, match="the disk is full"):
        extract_archive(local / f"{TASK}.tar", folder)
    assert list(folder.parent.iterdir()) == []


# check_dataset


def test_sound_dataset_passes(dataset):
    assert check_dataset(dataset, threads=2) == 3


def remove_label(folder):
    (folder / "labelsTr/cube_002.nii.gz").unlink()


def remove_image(folder):
    (folder / "imagesTr/cube_002.nii.gz").unlink()


def unlisted_label(folder):
    shutil.copy(folder / "labelsTr/cube_002.nii.gz", folder / "labelsTr/cube_004.nii.gz")


def alien_label(folder):
    save(folder / "labelsTr/cube_002.nii.gz", np.full(SHAPE, 7, np.uint8))


def fractional_label(folder):
    save(folder / "labelsTr/cube_002.nii.gz", np.full(SHAPE, 1.5, np.float32))


def other_shape(folder):
    save(folder / "labelsTr/cube_002.nii.gz", np.zeros((5, 6, 3), np.uint8))


def other_affine(folder):
    affine = np.diag([1, 1, 1, 1.0])
    affine[0, 3] = 0.5
    save(folder / "labelsTr/cube_002.nii.gz", np.zeros(SHAPE, np.uint8), affine)


def second_channel(folder):
    save(folder / "imagesTr/cube_002.nii.gz", np.zeros((*SHAPE, 2), np.float32))


def cut_image(folder):
    path = folder / "imagesTr/cube_002.nii.gz"
    path.write_bytes(path.read_bytes()[:-200])


def no_nifti(folder):
    (folder / "imagesTr/cube_002.nii.gz").write_text("no image")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_label, r"cube_002: labelsTr/cube_002.nii.gz is missing"),
        (remove_image, r"cube_002: imagesTr/cube_002.nii.gz is missing"),
        (unlisted_label, r"cube_004: labelsTr/cube_004.nii.gz is not listed"),
        (alien_label, r"cube_002: label values 7 are not declared \(\[0, 1, 2\]\)"),
        (fractional_label, r"cube_002: label values 1.5 are not declared"),
        (other_shape, r"cube_002: image shape \(5, 6, 4\) and label shape \(5, 6, 3\) differ"),
        (other_affine, r"cube_002: image and label differ in their affine"),
        (
            second_channel,
            r"cube_002: SimpleITKIO reads 2 channels, but `dataset.json` names 1",
        ),
        (cut_image, r"cube_002: imagesTr/cube_002.nii.gz cannot be read"),
        (no_nifti, r"cube_002: imagesTr/cube_002.nii.gz cannot be read"),
    ],
)
def test_fault_is_listed_by_case(dataset, damage, message):
    damage(dataset)
    with pytest.raises(UserError, match=message) as error:
        check_dataset(dataset)
    assert "has 1 fault:" in str(error.value)


def test_hidden_files_of_macos_are_ignored(dataset):
    for place in ("imagesTr", "labelsTr"):
        (dataset / place / "._cube_001.nii.gz").write_text("of macOS")
        (dataset / place / ".DS_Store").write_text("of macOS")
    assert check_dataset(dataset) == 3


def test_first_ten_faults_and_their_number_are_told(dataset):
    for i in range(30):
        (dataset / f"imagesTr/extra_{i:02d}.nii.gz").touch()
    with pytest.raises(UserError) as error:
        check_dataset(dataset)
    text = str(error.value)
    assert "30 faults" in text
    assert "extra_09" in text
    assert "extra_10" not in text
    assert "20 more" in text


def test_rounding_of_the_affine_is_no_fault(dataset):
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(1e-4), -np.sin(1e-4)], [np.sin(1e-4), np.cos(1e-4)]]
    save(dataset / "labelsTr/cube_002.nii.gz", np.zeros(SHAPE, np.uint8), affine)
    assert check_dataset(dataset) == 3


def test_scaled_labels_are_read_as_their_header_says(dataset):
    path = dataset / "labelsTr/cube_002.nii.gz"
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(SHAPE)
    header.set_data_offset(352)
    header["magic"] = b"n+1"
    header.set_sform(np.eye(4), code=1)
    for slope, stored in ((0.5, 4), (2, 1)):
        header["scl_slope"], header["scl_inter"] = slope, 0
        data = np.full(SHAPE, stored, np.int16).tobytes()
        path.write_bytes(gzip.compress(header.binaryblock + bytes(4) + data))
        assert nibabel.load(path).get_fdata().max() == 2
        edit(dataset, labels={"0": "background", "1": "one", "2": "two"})
        affine = nibabel.load(path).affine
        image = np.asarray(nibabel.load(dataset / "imagesTr/cube_002.nii.gz").dataobj)
        save(dataset / "imagesTr/cube_002.nii.gz", image, affine)
        assert check_dataset(dataset) == 3
        edit(dataset, labels={"0": "background", "1": "one"})
        with pytest.raises(UserError, match="cube_002: label values 2 are not declared"):
            check_dataset(dataset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numTraining": 4}, "`numTraining` is 4, but `training` lists 3 cases"),
        ({"numTraining": None}, "`numTraining` is None"),
        ({"test": None}, "the list `test`"),
        ({"labels": None}, "`labels` is missing"),
        ({"modality": []}, "`modality` is missing, empty or not of type dict"),
        ({"labels": {"0": "background", "2": "two"}}, "keys of `labels` are not 0, 1, 2"),
        ({"labels": {"0": "background", "1": "a", "2": "a"}}, "no name twice"),
        ({"training": ["cube_001"], "numTraining": 1}, "entry without image or label"),
    ],
)
def test_incomplete_description_is_refused(dataset, change, message):
    edit(dataset, **change)
    with pytest.raises(UserError, match=message) as error:
        check_dataset(dataset)
    assert "dataset.json" in str(error.value)


def test_missing_and_broken_description(dataset):
    (dataset / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        check_dataset(dataset)
    (dataset / "dataset.json").unlink()
    with pytest.raises(
        UserError, match=r"dataset.json is missing; an MSD dataset needs a complete one"
    ):
        check_dataset(dataset)


def test_listed_file_must_lie_in_its_folder(dataset):
    entries = json.loads((dataset / "dataset.json").read_text())["training"]
    entries[0]["image"] = "../elsewhere/cube_001.nii.gz"
    edit(dataset, training=entries)
    with pytest.raises(UserError, match=r"cube_001: image \.\./elsewhere"):
        check_dataset(dataset)


# convert_task


def test_conversion_that_left_a_channel_out_is_noticed(dataset, tmp_path):
    converted = tmp_path / "Dataset077_Cube"
    shutil.copytree(dataset, converted)
    for path in (converted / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace(".nii.gz", "_0000.nii.gz")))
    description = read_description(dataset)
    check_conversion(description, converted)
    description["modality"] = {"0": "T2", "1": "ADC"}
    with pytest.raises(UserError, match=r"3 files, the first is imagesTr/cube_001_0001.nii.gz"):
        check_conversion(description, converted)


# Real data, if available


@pytest.mark.skipif("MSD_ARCHIVES" not in os.environ, reason="MSD_ARCHIVES is not set to a folder")
def test_real_archives_pass_the_check(tmp_path):
    found = sorted(Path(os.environ["MSD_ARCHIVES"]).glob("Task*.tar"))
    assert found
    for archive in found:
        folder = tmp_path / archive.stem
        extract_archive(archive, folder)
        assert check_dataset(folder, threads=2) > 0
