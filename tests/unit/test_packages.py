"""What was really imported, and what is refused because it is not what is installed."""

import json

import pytest

from workflow_scripts.common.errors import UserError
from workflow_scripts.common.nnunet_setup import find_trainer
from workflow_scripts.training.packages import (
    PACKAGES,
    check_origins,
    code_hash,
    imported_from,
    inherited_settings,
)

NAME = "made_up_package"


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A folder of installed packages with one package, and a changed copy elsewhere."""
    for folder in ("installed", "copy"):
        (tmp_path / folder / NAME).mkdir(parents=True)
        (tmp_path / folder / NAME / "__init__.py").write_text(f"WHERE = {folder!r}\n")
    metadata = tmp_path / "installed" / f"{NAME}-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.2\n")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    return tmp_path


@pytest.mark.parametrize("namespace", [False, True])
def test_a_copy_that_hides_an_installed_package_is_refused(environment, monkeypatch, namespace):
    check_origins([NAME])
    if namespace:  # as batchgeneratorsv2, whose copy is then merged with it
        for path in environment.glob("*/*/__init__.py"):
            path.rename(path.with_name("code.py"))
    monkeypatch.syspath_prepend(environment / "copy")
    with pytest.raises(UserError) as error:
        check_origins([NAME])
    for told in (NAME, "1.2", str(environment / "copy"), str(environment / "installed")):
        assert told in str(error.value)


def test_an_editable_installation_is_accepted(environment, monkeypatch):
    monkeypatch.syspath_prepend(environment / "copy")
    origin = {"url": f"file://{environment}/copy", "dir_info": {"editable": True}}
    told = environment / "installed" / f"{NAME}-1.2.dist-info" / "direct_url.json"
    told.write_text(json.dumps(origin))
    check_origins([NAME])


def test_a_missing_package_is_named():
    with pytest.raises(UserError, match="no_such_package is not installed"):
        check_origins(["no_such_package"])


def test_changed_files_of_a_package_or_of_a_trainer_change_the_hash(environment, monkeypatch):
    trainer = type("Trainer", (), {"__module__": f"{NAME}.trainer"})
    other = environment / "trainers" / "mine.py"
    other.parent.mkdir()
    other.write_text("LR = 1\n")
    monkeypatch.setenv("nnUNet_extTrainer", str(other.parent))
    mine = type("Mine", (), {"__module__": "mine"})
    hashes = {code_hash(trainer, [NAME]), code_hash(mine, [NAME])}
    other.write_text("LR = 2\n")
    hashes.add(code_hash(mine, [NAME]))
    (environment / "installed" / NAME / "__init__.py").write_text("WHERE = 'changed'\n")
    hashes.add(code_hash(trainer, [NAME]))
    assert len(hashes) == 4


def test_an_external_trainer_that_nnunet_found_changes_the_hash(tmp_path, monkeypatch):
    """nnU-Net forgets the module, and the folder is not on `sys.path`."""
    path = tmp_path / "of_a_group" / "trainers.py"
    path.parent.mkdir()
    (path.parent / "__init__.py").touch()
    lines = [
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer",
        "class nnUNetTrainerOfAGroup(nnUNetTrainer):",
        "    LR = 1",
    ]
    path.write_text("\n".join(lines))
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    trainer = find_trainer("nnUNetTrainerOfAGroup")
    before = code_hash(trainer, [])
    assert before == code_hash(trainer, [])
    path.write_text(path.read_text().replace("LR = 1", "LR = 2"))
    assert code_hash(trainer, []) != before


def test_this_environment_s_packages_are_its_own():
    check_origins()
    assert set(imported_from()) <= set(PACKAGES)


def test_settings_that_affect_arithmetic_or_speed_are_recorded():
    kept = {"OMP_NUM_THREADS": "1", "LD_PRELOAD": "x.so", "nnUNet_compile": "f", "MKL_CBWR": "AVX2"}
    assert inherited_settings({**kept, "HOME": "/root", "PATH": "/bin"}) == dict(
        sorted(kept.items())
    )
