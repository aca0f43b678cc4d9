"""Keep the user's own settings and packages out of the jobs of a study.

The Snakefile calls this module while it is parsed, on every machine that runs its jobs. Jobs
inherit the environment. The module imports only packages that Snakemake installs.
"""

import getpass
import os
import re
import site
from importlib.metadata import distribution
from pathlib import Path

from workflow_scripts.common.errors import ConfigError

KEPT = re.compile(
    "nnUNet_(extTrainer|compile)"  # a user's own trainers; machines that cannot compile
    "|PYTORCH_(CUDA_)?ALLOC_CONF|TORCH_HOME|TORCHINDUCTOR_CACHE_DIR"  # memory and caches
)
DROPPED = re.compile(
    # Libraries read these: they change carbon intensities, arithmetic or loggers.
    "(codecarbon|nnUNet|torch|pytorch|torchdynamo|torchinductor|dnnl|onednn|jupyter|ipython|tqdm)_.*"
    "|NVIDIA_TF32_OVERRIDE|IPYTHONDIR"
    # Python reads these: warnings become errors, assertions vanish, encodings change.
    "|PYTHON(WARNINGS|OPTIMIZE|STARTUP|IOENCODING|INSPECT|DEVMODE|TRACEMALLOC|VERBOSE|DEBUG|HOME)"
    # nibabel, SimpleITK and blosc2 read these: threads, compression and loaded plugins.
    "|ITK_AUTOLOAD_PATH|BLOSC_.*|NIBABEL_.*"
    "|LANG|LANGUAGE|LC_.*",
    re.IGNORECASE,
)


def check_python(path: str) -> None:
    """Reject a path to Python that contains a space, because Snakemake does not quote it.

    Raises:
        ConfigError: it contains a space.
    """
    if re.search(r"\s", path):
        raise ConfigError(
            f"Error: the path to Python contains a space: {path!r}. Snakemake cannot start "
            "scripts with it: move the environment to a path without spaces"
        )


def isolate() -> None:
    """Hide the user's settings and packages from all jobs, by editing `os.environ`."""
    for name in list(os.environ):
        if DROPPED.fullmatch(name) and not KEPT.fullmatch(name):
            del os.environ[name]
    os.environ |= {
        "LC_ALL": "C",
        "PYTHONUTF8": "1",
        "MPLBACKEND": "Agg",
        "MATPLOTLIBRC": os.devnull,  # instead of one in the home folder
    }
    name_user()
    hide_user_site()
    hide_python_path()


def name_user() -> None:
    """Use the user ID as name if the user has none, as in containers; some libraries need one."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.getuid())


def hide_user_site() -> None:
    """Hide ~/.local from all jobs: it would precede the packages of their conda environments.

    Nothing is hidden if Snakemake itself is installed there, because jobs need it too.
    """
    folder = Path(str(distribution("snakemake").locate_file("")))
    if not folder.is_relative_to(site.getusersitepackages()):
        os.environ["PYTHONNOUSERSITE"] = "1"


def hide_python_path() -> None:
    """Let no folder of PYTHONPATH precede the packages of the environment in any job.

    Snakemake hands its own search path to scripts, behind their site-packages: what only PYTHONPATH
    provides can still be imported. Nothing changes if Snakemake itself comes from there, as in the
    modules of some clusters; `training.packages` then refuses packages of another origin.
    """
    folder = Path(str(distribution("snakemake").locate_file(""))).resolve()
    listed = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if folder not in {Path(entry).resolve() for entry in filter(None, listed)}:
        os.environ.pop("PYTHONPATH", None)
