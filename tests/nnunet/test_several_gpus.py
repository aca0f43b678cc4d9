"""A training shared by two processes (DDP) on the CPU: every stage's batch is distributed."""

import contextlib
import json
import os
import subprocess
import sys
import time
from math import ceil
from pathlib import Path

import numpy as np
import pytest

from helpers.folds import kill_group

pytestmark = pytest.mark.slow  # two processes that import torch and nnU-Net

ROOT = Path(__file__).parents[2]
PERFORMANCE = "nnUNetTrainerProgressivePerformancePatch"
PROGRESSIVE = "nnUNetTrainerProgressivePatch"
RANKS = 2
SIZES = [(4, 4, 4), (8, 4, 4), (8, 8, 4), (8, 8, 8), (12, 8, 8), (16, 8, 8)]
# For each arm: the planned batch, and patch and batch of every stage. If the batch is odd, one
# process has one sample more than the other.
ARMS = {
    PERFORMANCE: (4, list(zip(SIZES, [64, 32, 16, 8, 5, 4], strict=True))),
    PROGRESSIVE: (5, [(size, 5) for size in SIZES[1:]]),
}
# nnU-Net assumes that DDP is on CUDA, so the device is corrected after its constructor.
WORKER = """
import hashlib, json, sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock
from torch.nn.parallel import DistributedDataParallel

from workflow_scripts.common.nnunet_setup import find_trainer
from workflow_scripts.training.trainer_factory import seed_everything


def on_cpu(base):
    class OnCpu(base):
        def __init__(self, plans, configuration, fold, dataset_json, device):
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.device, self.grad_scaler = device, None
            self.noted = {"train": [], "validation": [], "forced": [[], []]}

        def get_dataloaders(self):
            loaders = super().get_dataloaders()
            for loader, forced in zip(loaders, self.noted["forced"]):
                self.note_forced(loader.data_loader, forced)
            return loaders

        def note_forced(self, loader, forced):
            crop = loader.get_bbox

            def note(shape, force_fg, locations):
                forced.append(bool(force_fg))
                return crop(shape, force_fg, locations)

            loader.get_bbox = note

        def note(self, kind, batch):
            data = batch["data"]
            keys = [str(key) for key in batch["keys"]]
            self.noted[kind].append([list(data.shape), keys, float(data.double().sum())])

        def train_step(self, batch):
            self.note("train", batch)
            return super().train_step(batch)

        def validation_step(self, batch):
            self.note("validation", batch)
            return super().validation_step(batch)

    OnCpu.__name__ = base.__name__
    return OnCpu


def digest(trainer):
    values = trainer.network.module.state_dict().values()
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in values)).hexdigest()


def train(name, plans, epochs, dataset_json, rank):
    seed_everything(rank)
    cpu = torch.device("cpu")
    arguments = {**plans, "continue_training": False}, "3d_fullres", 0, dataset_json, cpu
    trainer = on_cpu(find_trainer(name))(*arguments)
    trainer.num_epochs, trainer.num_iterations_per_epoch = epochs, 1
    trainer.num_val_iterations_per_epoch = 1
    trainer.initialize()
    first = digest(trainer)
    trainer.run_training()
    losses = {
        kind: [float(loss) for loss in trainer.logger.get_value(kind, step=None)]
        for kind in ("train_losses", "val_losses")
    }
    return {**trainer.noted, **losses, "first": first, "last": digest(trainer)}


if __name__ == "__main__":
    spec, rank = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    torch.set_num_threads(1)
    stock.DDP = lambda network, device_ids: DistributedDataParallel(network)
    LocalLogger.plot_progress_png = lambda *_: None
    dist.init_process_group(
        "gloo",
        init_method=spec["store"],
        rank=rank,
        world_size=spec["ranks"],
        timeout=timedelta(seconds=spec["timeout"]),
    )
    said = {
        name: train(name, plans, epochs, spec["dataset_json"], rank)
        for name, (plans, epochs) in spec["arms"].items()
    }
    Path(f"{sys.argv[1]}.{rank}").write_text(json.dumps(said))
    dist.destroy_process_group()
"""
TIMEOUT = 240


def planned_for(name, plans):
    """Return the tiny task's plans with the batch of an arm's test."""
    plans["configurations"]["3d_fullres"]["batch_size"] = ARMS[name][0]
    return plans


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    """Records of both processes for both arms' trainings, and the results folder."""
    raw, preprocessed = prepared
    root = tmp_path_factory.mktemp("several_gpus")
    folder = preprocessed / "Dataset998_Tiny"
    plans = (folder / "tinyPlans.json").read_text()
    spec = root / "spec.json"
    content = {
        "arms": {n: (planned_for(n, json.loads(plans)), len(ARMS[n][1])) for n in ARMS},
        "dataset_json": json.loads((folder / "dataset.json").read_text()),
        "store": f"file://{root / 'store'}",
        "ranks": RANKS,
        "timeout": TIMEOUT,
    }
    spec.write_text(json.dumps(content))
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "nnUNet_raw": str(raw),
        "nnUNet_preprocessed": str(preprocessed),
        "nnUNet_results": str(root / "results"),
        "nnUNet_n_proc_DA": "0",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "CUDA_VISIBLE_DEVICES": "",
        "MPLBACKEND": "Agg",
    }
    (root / "worker.py").write_text(WORKER)
    with contextlib.ExitStack() as stack:
        processes = []
        for rank in range(RANKS):
            log = stack.enter_context((root / f"{rank}.log").open("w"))
            command = [sys.executable, root / "worker.py", spec, str(rank)]
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, cwd=root, start_new_session=True
            )
            stack.callback(kill_group, process)
            processes.append(process)
        deadline = time.monotonic() + TIMEOUT
        while any(process.poll() is None for process in processes):
            failed = any(process.poll() for process in processes)
            if failed or time.monotonic() > deadline:
                break  # the other process would wait for ever
            time.sleep(0.1)
        codes = [process.poll() for process in processes]
    logs = "\n".join((root / f"{rank}.log").read_text()[-3000:] for rank in range(RANKS))
    assert codes == [0] * RANKS, logs
    noted = [json.loads(Path(f"{spec}.{rank}").read_text()) for rank in range(RANKS)]
    return noted, root / "results"


@pytest.mark.parametrize("name", ARMS)
def test_the_shares_add_up_to_every_stage_s_batch(trained, name):
    planned, stages = ARMS[name]
    ranks = [noted[name] for noted in trained[0]]
    for kind, expected in (
        ("train", stages),
        ("validation", [(SIZES[-1], planned)] * len(stages)),
    ):
        for (size, batch), *entries in zip(expected, *[r[kind] for r in ranks], strict=True):
            shapes = [shape for shape, _, _ in entries]
            assert [shape[0] for shape in shapes] == [batch - batch // 2, batch // 2], kind
            assert [tuple(shape[2:]) for shape in shapes] == [size] * RANKS, kind
            sums = {total for _, _, total in entries}
            assert len(sums) == RANKS, "each process draws its own batches"


@pytest.mark.parametrize("name", ARMS)
def test_foreground_is_forced_as_in_one_process(trained, tiny, name):
    """The samples of both processes, concatenated, are those of the whole batch."""
    planned, stages = ARMS[name]
    alone = tiny.trainer(name, epochs=len(stages), plans=planned_for(name, tiny.plans))
    training, validating = alone._loading_plans()
    noted = [ranks[name]["forced"] for ranks in trained[0]]
    shares = [[batch - batch // 2, batch // 2] for _, batch in stages]
    for number, share in enumerate(shares):
        start = [sum(before[rank] for before in shares[:number]) for rank in range(RANKS)]
        parts = [noted[rank][0][start[rank] : start[rank] + share[rank]] for rank in range(RANKS)]
        assert tuple(parts[0] + parts[1]) == training[number].forced
        assert any(parts[0] + parts[1])
    parts = [noted[0][1][: planned - planned // 2], noted[1][1][: planned // 2]]
    assert tuple(parts[0] + parts[1]) == validating.forced


def test_crops_of_a_volume_share_its_key(trained):
    """If both processes crop from a volume, each draws it by itself."""
    for number, (_, batch) in enumerate(ARMS[PERFORMANCE][1]):
        crops = ceil(batch / 4)
        first = 0
        for ranks in trained[0]:
            _, keys, _ = ranks[PERFORMANCE]["train"][number]
            volumes = [(first + n) // crops for n in range(len(keys))]
            assert len(set(zip(volumes, keys, strict=True))) == len(set(volumes))
            first += len(keys)


@pytest.mark.parametrize("name", ARMS)
def test_both_processes_end_with_the_same_weights(trained, name):
    one, other = (ranks[name] for ranks in trained[0])
    assert one["first"] == other["first"], "same initial weights regardless of the seeds"
    assert one["last"] == other["last"]
    assert one["last"] != one["first"]
    for kind in ("train_losses", "val_losses"):
        assert one[kind] == other[kind]
        assert len(one[kind]) == len(ARMS[name][1])
        assert np.isfinite(one[kind]).all()


def test_one_checkpoint_is_written(trained):
    written = sorted(path.parent.parent.name for path in trained[1].rglob("checkpoint_final.pth"))
    assert written == sorted(f"{name}__tinyPlans__3d_fullres" for name in ARMS)
    assert not list(trained[1].rglob("*.partial"))
