"""A user's settings for other work do not affect the jobs of a study."""

import getpass
import os
import site
from pathlib import Path

import matplotlib as mpl
import pytest
import snakemake
from matplotlib import pyplot as plt

from helpers.tree import ROOT
from workflow_scripts.common.errors import ConfigError
from workflow_scripts.common.figure_style import load_style
from workflow_scripts.records.energy_meter import EnergyMeter, EnergySettings
from workflow_scripts.study.isolation import (
    check_python,
    hide_python_path,
    hide_user_site,
    isolate,
    name_user,
)

DROPPED = [
    "CODECARBON_CLOUD_REGION",
    "codecarbon_force_cpu_power",
    "nnUNet_wandb_enabled",
    "nnUNet_keep_files_open",
    "TORCH_FORCE_WEIGHTS_ONLY_LOAD",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCHDYNAMO_DISABLE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "NVIDIA_TF32_OVERRIDE",
    "JUPYTER_CONFIG_PATH",
    "IPYTHONDIR",
    "TQDM_MININTERVAL",
    "PYTHONWARNINGS",
    "PYTHONOPTIMIZE",
    "PYTHONIOENCODING",
    "PYTHONHOME",
    "PYTHONVERBOSE",
    "ITK_AUTOLOAD_PATH",
    "BLOSC_NTHREADS",
    "LANGUAGE",
    "LC_NUMERIC",
]
KEPT = ["nnUNet_extTrainer", "nnUNet_compile", "PYTORCH_CUDA_ALLOC_CONF", "CUDA_VISIBLE_DEVICES"]
KEPT += ["HTTPS_PROXY", "TMPDIR", "SLURM_JOB_ID", "OMP_NUM_THREADS"]


@pytest.fixture(autouse=True)
def environment():
    """Restore the environment afterwards."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("name", DROPPED)
def test_settings_of_libraries_are_dropped(name):
    os.environ[name] = "1"
    isolate()
    assert name not in os.environ


@pytest.mark.parametrize("name", KEPT)
def test_what_a_machine_needs_is_kept(name):
    os.environ[name] = "1"
    isolate()
    assert os.environ[name] == "1"


def test_files_and_messages_have_one_encoding_and_language():
    os.environ |= {"LANG": "de_DE.ISO-8859-1", "LC_ALL": "tr_TR.UTF-8"}
    isolate()
    assert (os.environ["LC_ALL"], os.environ["PYTHONUTF8"]) == ("C", "1")
    assert "LANG" not in os.environ


def test_a_user_without_a_name_gets_one(monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        os.environ.pop(name, None)
    monkeypatch.setattr(os, "getuid", lambda: 987654)
    name_user()
    assert getpass.getuser() == "987654"


@pytest.mark.parametrize("at_home", [False, True])
def test_user_packages_are_hidden_unless_snakemake_is_one(monkeypatch, tmp_path, at_home):
    folder = Path(snakemake.__file__).parents[1] if at_home else tmp_path
    monkeypatch.setattr(site, "getusersitepackages", lambda: str(folder))
    os.environ["PYTHONNOUSERSITE"] = ""
    hide_user_site()
    assert os.environ["PYTHONNOUSERSITE"] == ("" if at_home else "1")


@pytest.mark.parametrize("there", [False, True])
def test_a_copy_on_the_python_path_is_not_imported_unless_snakemake_is_there(tmp_path, there):
    """It would train, and the version of the installed package would be recorded."""
    path = str(Path(snakemake.__file__).parents[1]) if there else ""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(tmp_path), path])
    hide_python_path()
    assert ("PYTHONPATH" in os.environ) is there


REGION = "[codecarbon]\ncloud_provider = aws\ncloud_region = us-east-1\nforce_cpu_power = 9000\n"
BROKEN = "cloud_region without a section = \x00 ["


@pytest.mark.parametrize("place", ["home", "working directory"])
@pytest.mark.parametrize("content", [REGION, BROKEN], ids=["region", "broken"])
def test_energy_is_that_of_the_study_s_country(monkeypatch, tmp_path, place, content):
    """381 g/kWh in Germany, regardless of codecarbon's own configuration files."""
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    (home if place == "home" else here).joinpath(".codecarbon.config").write_text(content)
    monkeypatch.chdir(here)
    os.environ["HOME"] = str(home)
    meter = EnergyMeter(EnergySettings("DEU", "process"))
    sum(number * number for number in range(3_000_000))
    reading = meter.read()
    assert reading.error == ""
    assert reading.kg_co2eq / reading.kwh == pytest.approx(0.381, abs=0.001)
    assert "9000" not in str(meter.describe().sensors)


def test_figures_have_one_style(monkeypatch, tmp_path):
    mpl.rcParams["lines.linewidth"] = 30
    mpl.rcParams["savefig.bbox"] = "tight"
    load_style(ROOT / "config/plotting.yaml")
    assert mpl.rcParams["savefig.bbox"] is None
    assert plt.rcParams["lines.linewidth"] < 3


def test_a_path_to_python_with_a_space_is_refused():
    check_python("/opt/env/bin/python")
    with pytest.raises(ConfigError, match="contains a space: '/my env/bin/python'"):
        check_python("/my env/bin/python")
