"""The package from its wheel, in an environment that does not know this repository."""

import copy
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from helpers.processes import PATIENCE
from helpers.tree import copy_tree

pytestmark = pytest.mark.ci

MINE = """
from patch_curricula.arms import nnUNetTrainerProgressivePerformancePatch


class nnUNetTrainerMine(nnUNetTrainerProgressivePerformancePatch):
    mirror_axes = "none"

    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = {epochs}
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 4, 1
"""
COMMAND = """
import multiprocessing, sys
multiprocessing.set_start_method(sys.argv.pop(1))
from nnunetv2.{module} import {function}
{function}()
"""
TRAIN = {"module": "run.run_training", "function": "run_training_entry"}
PREDICT = {"module": "inference.predict_from_raw_data", "function": "predict_entry_point"}
INSTALL = {"module": "model_sharing.entry_points", "function": "install_from_zip_entry_point"}


class Installed:
    """An environment with the wheel, and the packages of this one but for the repository."""

    def __init__(self, folder):
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        self.python = folder / "venv/bin/python"
        pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
        build = (
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            folder,
            copy_tree(folder / "clone"),
        )
        subprocess.run([*pip, *build], check=True)
        (wheel,) = folder.glob("*.whl")
        install = ("--python", self.python, "install", "--no-deps", wheel)
        subprocess.run([*pip, *install], check=True)
        (site,) = (folder / "venv").glob("lib/python*/site-packages")
        (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        self.variables = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("nnUNet", "PYTHON"))
        } | {"OMP_NUM_THREADS": "1"}

    def run(self, *arguments):
        done = subprocess.run(
            [self.python, *map(str, arguments)],
            env=self.variables,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    def nnunet(self, command, method, *arguments):
        return self.run("-c", COMMAND.format(**command), method, *arguments)

    def predict(self, tiny, trainer, images, out):
        names = ("-d", tiny.dataset, "-c", "3d_fullres", "-p", tiny.plans_name, "-tr", trainer)
        options = ("-f", "0", "-device", "cpu", "--save_probabilities", "-npp", "0", "-nps", "0")
        self.nnunet(PREDICT, "fork", "-i", images, "-o", out, *names, *options)
        return np.load(out / "tiny_000.npz")["probabilities"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return Installed(tmp_path_factory.mktemp("package"))


@pytest.fixture
def installed(environment):
    """The environment with variables of its own."""
    own = copy.copy(environment)
    own.variables = dict(environment.variables)
    return own


def test_the_folder_finds_every_class_and_no_more(installed):
    """Classes are those of the installed package, so a process that is spawned can import them."""
    code = (
        "import pickle\n"
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        "for end in ('', '_250epochs'):\n"
        "    kind = find('nnUNetTrainerProgressivePatch' + end)\n"
        "    assert pickle.loads(pickle.dumps(kind)) is kind\n"
        "print(kind.__module__)\n"
    )
    installed.variables["nnUNet_extTrainer"] = installed.run("-m", "patch_curricula").strip()
    said = installed.run("-c", code)
    assert said.splitlines()[-1] == "patch_curricula.standalone.trainers"
    missing = "import importlib.util as u; print(u.find_spec('workflow_scripts'))"
    assert installed.run("-c", missing).strip() == "None"


def test_a_model_s_whole_life(installed, tiny, tmp_path):
    """A user's subclass trains, continues under each start method, predicts and is exported."""
    mine = tmp_path / "trainers"
    mine.mkdir()
    installed.variables |= tiny.environment | {
        "nnUNet_n_proc_DA": "2",
        "nnUNet_extTrainer": str(mine),
    }
    fold = ("3d_fullres", "0", "-tr", "nnUNetTrainerMine", "-p", tiny.plans_name, "-device", "cpu")
    for epochs, method in enumerate(("fork", "forkserver", "spawn"), start=1):
        (mine / "mine.py").write_text(MINE.format(epochs=epochs))
        resume = ["--c"] if epochs > 1 else []
        installed.nnunet(TRAIN, method, tiny.dataset, *fold, *resume)
    name = f"{tiny.plans_name}__3d_fullres"
    model = tiny.results / tiny.dataset / f"nnUNetTrainerMine__{name}"
    logs = "".join(path.read_text() for path in sorted(model.glob("fold_0/training_log_*")))
    assert [logs.count(f"Epoch {epoch}") for epoch in range(4)] == [1, 1, 1, 0]

    images = tmp_path / "images"
    images.mkdir()
    case = "tiny_000_0000.nii.gz"
    (images / case).symlink_to(tiny.raw / tiny.dataset / "imagesTr" / case)
    expected = installed.predict(tiny, "nnUNetTrainerMine", images, tmp_path / "own")
    out = tmp_path / "out"
    archive = installed.run("-m", "patch_curricula", "export", model, out).splitlines()[-1]
    assert Path(archive).is_file()

    del installed.variables["nnUNet_extTrainer"]
    installed.variables["nnUNet_results"] = str(tmp_path / "elsewhere")
    installed.nnunet(INSTALL, "fork", archive)
    assert (tmp_path / "elsewhere" / tiny.dataset / f"nnUNetTrainer__{name}" / "card.md").exists()
    found = installed.predict(tiny, "nnUNetTrainer", images, tmp_path / "plain")
    assert np.array_equal(found, expected)


def test_variables_of_the_environment_are_checked_and_kept(installed, tiny, tmp_path):
    code = (
        "import json, sys, torch\n"
        "from pathlib import Path\n"
        "from patch_curricula.standalone.trainers import CLASSES\n"
        "folder = Path(sys.argv[1])\n"
        "plans = json.loads((folder / 'tinyPlans.json').read_text())\n"
        "dataset = json.loads((folder / 'dataset.json').read_text())\n"
        "kind = CLASSES['nnUNetTrainerProgressivePerformancePatch_5epochs']\n"
        "plans['continue_training'] = False\n"
        "trainer = kind(plans, '3d_fullres', 0, dataset, torch.device('cpu'))\n"
        "trainer.initialize()\n"
        "print(json.dumps([trainer.num_epochs, trainer.stages[0].batch_size]))\n"
        "if sys.argv[2] == 'write':\n"
        "    trainer.save_checkpoint('checkpoint.pth')\n"
        "else:\n"
        "    trainer.load_checkpoint('checkpoint.pth')\n"
    )
    installed.variables |= tiny.environment | {"nnUNet_curriculum_max_batch": "6"}
    said = installed.run("-c", code, tiny.folder, "write")
    assert json.loads(said.splitlines()[-1]) == [5, 6]
    assert "max_batch is 6, by the environment" in said
    installed.variables["nnUNet_curriculum_max_batch"] = "7"
    with pytest.raises(AssertionError, match=r"this training began with\s+\{'max_batch': 6\}"):
        installed.run("-c", code, tiny.folder, "read")
    installed.variables["nnUNet_curriculum_max_batch"] = "none"
    with pytest.raises(AssertionError, match="nnUNet_curriculum_max_batch: 'none' is not a whole"):
        installed.run("-c", code, tiny.folder, "read")
