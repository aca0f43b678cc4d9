"""One of two processes that share a training (DDP): `shared_training SPEC RANK`, a JSON file.

With GPUs each process computes on its own GPU, as with `nnUNetv2_train -num_gpus 2`. Without a GPU
both compute on the CPU, and nnU-Net's assumption that DDP means CUDA is corrected.
"""

import hashlib
import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from workflow_scripts.common import nnunet_setup
from workflow_scripts.common.observers import observe
from workflow_scripts.study.settings import RunSettings
from workflow_scripts.study.specification import RunSpec

RANKS = 2
TIMEOUT = timedelta(minutes=5)


def compute_on_cpu() -> None:
    """Let nnU-Net's trainers share a training on the CPU."""
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock  # noqa: N813
    from torch.nn.parallel import DistributedDataParallel

    begin = stock.nnUNetTrainer.__init__

    def begin_on_cpu(
        self: Any, plans: dict, configuration: str, fold: int, dataset_json: dict, device: Any
    ) -> None:
        begin(self, plans, configuration, fold, dataset_json, device)
        self.device, self.grad_scaler = device, None

    stock.nnUNetTrainer.__init__ = begin_on_cpu
    stock.DDP = lambda network, device_ids: DistributedDataParallel(network)


def train(spec: dict[str, Any], rank: int) -> dict[str, Any]:
    """Return losses by epoch, steps and updates of the weights, and a digest of the final ones."""
    from workflow_scripts.records.updates import UpdateCounter
    from workflow_scripts.training.trainer_factory import make_trainer

    run, settings = RunSpec(**spec["run"]), RunSettings.from_dict(spec["settings"])
    trainer = make_trainer(
        run, settings.training, Path(spec["plans_file"]), spec["device"], resume=False
    )
    updates = UpdateCounter(trainer)
    steps = 0

    def count(batch: object) -> None:
        nonlocal steps
        steps += 1
        updates.follow()

    observe(trainer, "train_step", before=count)
    trainer.run_training()
    weights = trainer.network.module.state_dict().values()
    digest = hashlib.sha256(b"".join(value.cpu().numpy().tobytes() for value in weights))
    losses = trainer.logger.get_value("train_losses", step=None)
    return {
        "losses": list(map(float, losses)),
        "steps": steps,
        "updates": updates.count,
        "compiled": trainer._do_i_compile(),
        "weights": digest.hexdigest(),
    }


if __name__ == "__main__":
    spec, rank = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), int(sys.argv[2])
    folder, on_gpus = Path(spec["folder"]).absolute(), spec["device"] == "cuda"
    nnunet_setup.configure(1, 1, folder / "nnunet")
    torch.set_num_threads(1)
    if on_gpus:
        torch.cuda.set_device(rank)
    else:
        compute_on_cpu()
    dist.init_process_group(
        "nccl" if on_gpus else "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=rank,
        world_size=RANKS,
        timeout=TIMEOUT,
    )
    found = train(spec, rank)
    dist.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(found))
