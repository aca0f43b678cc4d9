"""A tiny nnU-Net task, made by the workflow's own functions, that trains in seconds."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.processes import forked_pools

DATASET = "Dataset998_Tiny"
PLANS = "tinyPlans"
CONFIGURATION = "3d_fullres"
CASES = 7
SHAPE = (24, 32, 24)
# Two poolings per axis, so units of 4 voxels: (8, 4, 4), (8, 8, 4), (8, 8, 8), (12, 8, 8), plan.
OVERRIDES = {"patch_size": [16, 8, 8], "batch_size": 4, "features_per_stage": [4, 8, 8]}


@dataclass
class TinyTask:
    """The task's files, and a factory of trainers whose results go to their own folder."""

    raw: Path
    preprocessed: Path
    results: Path

    dataset = DATASET
    configuration = CONFIGURATION
    plans_name = PLANS

    @property
    def folder(self) -> Path:
        """The preprocessed dataset."""
        return self.preprocessed / self.dataset

    @property
    def plans(self) -> dict[str, Any]:
        """A fresh copy of the plans."""
        return json.loads((self.folder / f"{self.plans_name}.json").read_text())

    @property
    def environment(self) -> dict[str, str]:
        """nnU-Net's environment variables."""
        return {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            "nnUNet_def_n_proc": "1",
            "nnUNet_n_proc_DA": "0",
            "MPLBACKEND": "Agg",
        }

    def trainer(
        self,
        name: str,
        *,
        epochs: int = 2,
        iterations: int = 3,
        validation_iterations: int = 1,
        seed: int = 1,
        plans: dict[str, Any] | None = None,
        **attributes: object,
    ) -> Any:
        """Return an initialised trainer of fold 0 on the CPU, with weights drawn from `seed`."""
        import torch

        from workflow_scripts.common.nnunet_setup import find_trainer
        from workflow_scripts.training.trainer_factory import seed_everything

        seed_everything(seed)
        trainer = find_trainer(name)(
            plans={**copy.deepcopy(plans or self.plans), "continue_training": False},
            configuration=self.configuration,
            fold=0,
            dataset_json=json.loads((self.folder / "dataset.json").read_text()),
            device=torch.device("cpu"),
        )
        trainer.num_epochs = epochs
        trainer.num_iterations_per_epoch = iterations
        trainer.num_val_iterations_per_epoch = validation_iterations
        for key, value in attributes.items():
            assert hasattr(trainer, key), key
            setattr(trainer, key, value)
        trainer.initialize()
        return trainer


def prepare(
    root: Path,
    kind: type[TinyTask] = TinyTask,
    write: Callable[[Path], list[str]] | None = None,
    overrides: dict[str, Any] = OVERRIDES,
) -> tuple[Path, Path]:
    """Create a task in a folder, as the workflow's rules do; `write` writes its raw dataset."""
    from workflow_scripts.common import nnunet_setup
    from workflow_scripts.common.files import write_json
    from workflow_scripts.planning.fingerprint_task import fingerprint_task
    from workflow_scripts.planning.plan_overrides import override_plans
    from workflow_scripts.planning.plan_task import plan_task
    from workflow_scripts.planning.preprocess_task import preprocess_task
    from workflow_scripts.planning.write_splits import write_splits

    raw, preprocessed = root / "nnUNet_raw", root / "nnUNet_preprocessed"
    dataset, configuration = kind.dataset, kind.configuration
    cases = (write or write_raw)(raw / dataset)
    with pytest.MonkeyPatch.context() as patch, forked_pools():
        for name in kind(raw, preprocessed, root).environment:
            patch.setenv(name, "")  # so that changes by `configure` are undone at the end
        patch.setattr(nnunet_setup, "RAW", raw)
        patch.setattr(nnunet_setup, "PREPROCESSED", preprocessed)
        fingerprint_task(dataset, 1)
        plan_task(dataset, "ExperimentPlanner", "nnUNetPlans", None)
        folder = preprocessed / dataset
        planned = json.loads((folder / "nnUNetPlans.json").read_text())
        plans = override_plans(planned, kind.plans_name, configuration, overrides)
        write_json(plans, folder / f"{kind.plans_name}.json")
        manifest = preprocess_task(dataset, kind.plans_name, configuration, 1)
        assert sorted(manifest["cases"]) == sorted(cases)
        write_json(write_splits(cases), folder / "splits_final.json")
    return raw, preprocessed


def write_raw(folder: Path) -> list[str]:
    """Write `CASES` noisy volumes with a ball of label 1 and a smaller one of label 2 inside."""
    import nibabel

    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    random = np.random.default_rng(2024)
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    cases = [f"tiny_{number:03d}" for number in range(CASES)]
    for case in cases:
        centre = np.array(SHAPE) / 2 + random.uniform(-3, 3, 3)
        distance = np.linalg.norm(grid - centre, axis=-1)
        label = (distance < 7).astype(np.uint8) + (distance < 4)
        image = 3 * label + random.normal(size=SHAPE)
        for kind, array in (("imagesTr", image.astype(np.float32)), ("labelsTr", label)):
            suffix = "_0000" if kind == "imagesTr" else ""
            path = folder / kind / f"{case}{suffix}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "outer": 1, "inner": 2},
        "numTraining": CASES,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return cases
