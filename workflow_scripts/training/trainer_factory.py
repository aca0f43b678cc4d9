"""Make the nnU-Net trainer of a training, with its seed, and load its checkpoint."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workflow_scripts.common.errors import UserError
from workflow_scripts.common.files import read_json
from workflow_scripts.common.nnunet_setup import find_trainer
from workflow_scripts.common.trainer_protocol import as_curriculum_trainer
from workflow_scripts.study.settings import TrainingSettings
from workflow_scripts.study.specification import RunSpec
from workflow_scripts.training.provenance import VERSIONS, compare_identity


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (the network's initial weights)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def make_trainer(
    run: RunSpec, training: TrainingSettings, plans_file: Path, device: str, resume: bool
) -> Any:
    """Return an initialised trainer of nnU-Net, with weights drawn from the seed.

    Args:
        run: which training.
        training: its length, seed and checkpoints.
        plans_file: nnU-Net's plans; its `dataset.json` is beside it.
        device: `cuda` or `cpu`.
        resume: whether a checkpoint will be loaded.

    Raises UserError for an unknown trainer or parameter, or a schedule that does not fit the plan.
    """
    seed_everything(training.seed)
    trainer: Any = find_trainer(run.trainer)(
        plans={**read_json(plans_file), "continue_training": resume},
        configuration=run.configuration,
        fold=run.fold,
        dataset_json=read_json(plans_file.parent / "dataset.json"),
        device=torch.device(device),
    )
    trainer.num_epochs = training.epochs
    trainer.num_iterations_per_epoch = training.iterations_per_epoch
    trainer.num_val_iterations_per_epoch = training.validation_iterations_per_epoch
    trainer.batch_seed = training.seed
    trainer.checkpoint_seconds = 60 * training.checkpoint_minutes
    for name, value in run.parameters.items():
        if not hasattr(trainer, name):
            raise UserError(f"arms.{run.arm}.parameters: {run.trainer} has no parameter {name}")
        setattr(trainer, name, value)
    if curriculum := as_curriculum_trainer(trainer):
        try:
            curriculum.schedule()
        except ValueError as error:
            raise UserError(f"arms.{run.arm}, {run.task}: {error}") from error
    trainer.initialize()
    return trainer


def load_checkpoint(trainer: Any, path: Path, identity: dict[str, Any]) -> None:
    """Load a checkpoint of this training, and add the identity to the ones that it will write.

    Raises UserError for a file that cannot be read, or that a different training has written.
    """
    try:
        trainer.load_checkpoint(str(path))
    except Exception as error:  # torch and pickle raise many kinds for a damaged file
        raise UserError(
            f"the checkpoint {path} cannot be read ({type(error).__name__}: {error}). Restore an "
            f"intact one, or delete {path.parent} to train from scratch"
        ) from error
    found = trainer.my_init_kwargs.get("identity")
    if found is not None:
        compare_identity(identity, found, path, VERSIONS)
    trainer.my_init_kwargs["identity"] = identity
