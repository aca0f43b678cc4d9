"""Imports shared by the processes of tests (see `processes.py`)."""

import functools
import os

# nnU-Net reads it at import; `nnunet_setup.configure` sets the same value for one thread.
os.environ["nnUNet_def_n_proc"] = "1"
os.environ["MATPLOTLIBRC"] = os.devnull  # as in every job (`isolation`)

import cpuinfo
import snakemake.cli  # noqa: F401

import workflow_scripts.training.attempt
import workflow_scripts.training.fold_training  # noqa: F401

# codecarbon queries it in every process, which takes a second.
cpuinfo.get_cpu_info = functools.cache(cpuinfo.get_cpu_info)
cpuinfo.get_cpu_info()
