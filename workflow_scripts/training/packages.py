"""Which packages a training really imported, and what of the machine's settings it inherited."""

import hashlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, distribution
from pathlib import Path

from workflow_scripts.common.errors import UserError

NNUNET = ("nnunetv2", "batchgenerators", "batchgeneratorsv2", "dynamic_network_architectures")
"""Packages whose code determines batches, networks and losses."""
PACKAGES = (*NNUNET, "torch", "numpy", "codecarbon")
SETTINGS = re.compile(
    "nnUNet_(compile|extTrainer)|(OMP|MKL|KMP|OPENBLAS|GOMP|CUBLAS|CUDNN|ATEN|PYTORCH|MALLOC)_.*"
    "|CUDA_(VISIBLE_DEVICES|LAUNCH_BLOCKING|DEVICE_ORDER)|LD_PRELOAD|LD_LIBRARY_PATH"
)
"""Environment variables that a machine may need and that affect arithmetic or speed."""


def check_origins(packages: Iterable[str] = PACKAGES) -> None:
    """Refuse packages that are not imported from where they are installed.

    A folder on PYTHONPATH, or a file in the working directory, may hide an installed package, whose
    version would then be recorded for other code. An editable installation is accepted.

    Raises:
        UserError: naming the package, the folder that hides it, and where it is installed.
    """
    for name in packages:
        try:
            installed, folders = distribution(name), _folders(name)
        except ModuleNotFoundError:  # also if it has no metadata, hence no version
            raise UserError(f"the package {name} is not installed in {sys.prefix}") from None
        home = Path(str(installed.locate_file("")))
        # Spack and Nix link a package's folder into the environment.
        own = home.resolve(), (home / name).resolve()
        foreign = [str(f) for f in folders if not any(f.is_relative_to(place) for place in own)]
        if foreign and not _is_editable(installed):
            raise UserError(
                f"{name} would be imported from {', '.join(foreign)}, but version "
                f"{installed.version} is installed in {home}. Remove that folder from PYTHONPATH, "
                "or install your copy into the environment (pip install --editable)"
            )


def _is_editable(installed: Distribution) -> bool:
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    return bool(origin.get("dir_info", {}).get("editable"))


def code_hash(trainer: type, packages: Iterable[str] = NNUNET) -> str:
    """Return a hash of the code of nnU-Net's packages, and of a trainer from elsewhere.

    A version does not tell whether somebody has changed the installed files.
    """
    files = []
    for name in packages:
        for folder in _folders(name):
            modules = sorted(folder.rglob("*.py"))
            files += [(path.relative_to(folder.parent), path) for path in modules]
    top = trainer.__module__.partition(".")[0]
    if top not in (*packages, "workflow_scripts"):
        files += [(Path(path.name), path) for path in _external(trainer)[:1]]
    total = hashlib.sha256()
    for relative, path in files:
        total.update(f"{relative.as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return total.hexdigest()[:16]


def _external(trainer: type) -> list[Path]:
    """Return the files of a trainer's module in the folders that `nnUNet_extTrainer` names.

    After nnU-Net has found a trainer there, the module can no longer be imported by its name.
    """
    folders = filter(None, os.environ.get("nnUNet_extTrainer", "").split(os.pathsep))
    parts = trainer.__module__.split(".")
    found = [Path(folder, *parts).with_suffix(".py") for folder in folders]
    return [path for path in found if path.is_file()]


def _folders(name: str) -> list[Path]:
    """Return the folders of a package; one without `__init__.py` may have several.

    Raises ModuleNotFoundError if it cannot be imported.
    """
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ModuleNotFoundError(name)
    if spec.submodule_search_locations:
        return [Path(folder).resolve() for folder in spec.submodule_search_locations]
    return [Path(str(spec.origin)).resolve().parent]


def imported_from() -> dict[str, str]:
    """Return the folder of each package that is not in this Python's own environment."""
    prefix = Path(sys.prefix).resolve()
    first = {name: _folders(name)[0] for name in PACKAGES}
    return {name: str(path) for name, path in first.items() if not path.is_relative_to(prefix)}


def inherited_settings(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment variables that may affect arithmetic or speed (`SETTINGS`)."""
    return {name: environment[name] for name in sorted(environment) if SETTINGS.fullmatch(name)}
