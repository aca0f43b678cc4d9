"""The configuration of a study so small that its complete run takes a minute or two."""

import yaml

from helpers.tree import ROOT

TASK = "Task99_BrainTissue"
SHIPPED = yaml.safe_load((ROOT / "config/studies/paper.yaml").read_text())["arms"]
ARMS = ("constant", "progressive", "random", "low_frequency")
"""One arm for each layout of records; the test of the real Task04 trains all arms."""
TRAINERS = {arm: SHIPPED[arm]["trainer"] for arm in ARMS}
CONFIG = {
    "study": "tiny",
    "tasks": [TASK],
    "folds": [0],
    "arms": {arm: {"trainer": trainer} for arm, trainer in TRAINERS.items()},
    "planning": {
        "overrides": {
            "all": {
                "patch_size": [16, 24, 16],
                "batch_size": 2,
                "features_per_stage": [4, 8, 8],
            }
        }
    },
    "training": {
        "epochs": 3,
        "iterations_per_epoch": 4,
        "validation_iterations_per_epoch": 1,
        "device": "cpu",
        "checkpoint_minutes": 0,
        "threads": 1,
    },
    "validation": {"mirroring": False},
    "energy": {"tracking_mode": "process"},
    "demo_task": {"cases": 6, "seed": 1},
}
