"""The packages that a user has in the home folder, with which jobs must not compute.

The Snakefile asks this module while it is parsed, so it imports only what Snakemake installs.
"""

import os
import site
from importlib.metadata import distribution
from pathlib import Path


def keep_out() -> None:
    """Hide ~/.local from all jobs: it would come before the packages of their conda environments.

    Nothing is hidden where Snakemake itself is installed there, since jobs need it as well.
    """
    folder = Path(str(distribution("snakemake").locate_file("")))
    if not folder.is_relative_to(site.getusersitepackages()):
        os.environ["PYTHONNOUSERSITE"] = "1"
