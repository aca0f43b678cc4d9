"""Predict a fold's validation cases with one model as stock nnU-Net does; measure Dice and cost."""

import math
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from log import UserError, redirect, tell

TRAINERS = Path(__file__).parent / "trainers"


def evaluate_scale(
    model: Path,
    fold: int,
    cases: list[str],
    preprocessed: Path,
    settings: dict[str, Any],
    energy: dict[str, Any],
    mirroring: bool,
    threads: int,
    summary_file: Path,
) -> dict[str, Any]:
    """Return what the prediction of the cases costs and scores.

    Every model is loaded from its folder and run by nnU-Net's own sliding window, the stock one
    too, so all are measured by the same lines. Seconds are those of the network: the sliding window
    with its mirrored passes. Energy is that of the whole, with reading and export of a case.

    Args:
        model: nnU-Net's model folder (`plans.json`, `fold_{fold}/checkpoint_final.pth`).
        fold: which checkpoint of it.
        cases: identifiers of the validation cases.
        preprocessed: nnU-Net's preprocessed dataset.
        settings: the config's `training` section, for device and precision.
        energy: the config's `energy` section.
        mirroring: test-time mirroring.
        threads: cores to use.
        summary_file: where nnU-Net writes its summary, every case in it.
    """
    import hardware
    import nnunet

    device, precision = hardware.prepare(settings, threads)
    nnunet.configure(processes=max(1, threads // 2))
    os.environ["nnUNet_extTrainer"] = os.pathsep.join([str(model / "trainers"), str(TRAINERS)])
    import torch
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
    from nnunetv2.inference.export_prediction import export_prediction_from_logits
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    from energy import EnergyMeter
    from flops import FlopTable

    torch_device = torch.device(device)
    predictor: Any = nnUNetPredictor(use_mirroring=mirroring, device=torch_device, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (fold,))
    network, patch = predictor.network, predictor.configuration_manager.patch_size
    channels = _input_channels(predictor)
    gmac = FlopTable(network, channels).validation_step(1, tuple(patch)) / 2e9
    if precision == "bf16":
        hardware.autocast_network(network)
    network.to(torch_device).eval()
    with torch.inference_mode():
        network(torch.zeros((1, channels, *patch), device=torch_device))  # the first pass is slower
    passes = [0]
    network.register_forward_hook(lambda _, x, __: passes.__setitem__(0, passes[0] + len(x[0])))

    folder = preprocessed / predictor.configuration_manager.data_identifier
    dataset = infer_dataset_class(str(folder))(str(folder), cases)
    seconds = 0.0
    meter = EnergyMeter(**energy)
    with tempfile.TemporaryDirectory() as predictions:
        for case in cases:
            data, _, _, properties = dataset.load_case(case)
            image = torch.from_numpy(data[:])
            began = time.monotonic()
            logits = predictor.predict_sliding_window_return_logits(image).cpu()
            seconds += time.monotonic() - began
            export_prediction_from_logits(
                logits,
                properties,
                predictor.configuration_manager,
                predictor.plans_manager,
                predictor.dataset_json,
                str(Path(predictions, case)),
                num_threads_torch=threads,
            )
        reading = meter.read()
        labels = predictor.label_manager
        summary = compute_metrics_on_folder(
            str(preprocessed / "gt_segmentations"),
            predictions,
            str(summary_file),
            predictor.plans_manager.image_reader_writer_class(),
            predictor.dataset_json["file_ending"],
            labels.foreground_regions if labels.has_regions else labels.foreground_labels,
            labels.ignore_label,
            num_processes=1,
            chill=True,
        )
    number = len(cases)
    return {
        "dice": summary["foreground_mean"]["Dice"],
        "cases": number,
        "gmac_per_patch": gmac,
        "passes_per_case": passes[0] / number,
        "gmac_per_case": gmac * passes[0] / number,
        "seconds_per_case": seconds / number,
        "kwh_per_case": reading.kwh / number,
        "kg_co2eq_per_case": reading.kg_co2eq / number,
        "energy_error": reading.error,
        "peak_memory_mb": _peak_memory_mb(device),
        "device": device,
        "precision": precision,
        "threads": threads,
        "mirroring": mirroring,
    }


def _input_channels(predictor: Any) -> int:
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

    return determine_num_input_channels(
        predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
    )


def _peak_memory_mb(device: str) -> float:
    """Return the most memory that tensors took on the GPU, or the process on a CPU."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


if __name__ == "__main__":
    redirect(snakemake.log[0])
    import json

    from nnunet import write_json
    from results import read_json
    from scale_study import PLANNED

    fold, scale = int(snakemake.wildcards.fold), snakemake.wildcards.scale
    record = read_json(Path(snakemake.input.run))
    if scale == PLANNED:
        model, baked = Path(record["results_folder"]).parent, {}
        if not (model / "plans.json").is_file():
            raise UserError(f"{model} holds no model: train {record['arm']} before it is evaluated")
    else:
        model = Path(snakemake.input.model[0]).parent
        baked = read_json(model / "baked.json")
    splits_file = Path(snakemake.input.splits)
    measured = evaluate_scale(
        model=model,
        fold=fold,
        cases=json.loads(splits_file.read_text())[fold]["val"],
        preprocessed=splits_file.parent,
        settings=snakemake.params.training,
        energy=snakemake.params.energy,
        mirroring=snakemake.params.mirroring,
        threads=snakemake.threads,
        summary_file=Path(snakemake.output.summary),
    )
    described = {
        key: record[key] for key in ("task", "arm", "fold", "seed", "cpu_model", "gpu_model")
    }
    described |= {"scale": baked.get("scale_factor"), **measured}
    described["relative_distance"] = baked.get("relative_distance", {}).get(str(fold))
    write_json(
        {key: None if _is_nan(value) else value for key, value in described.items()},
        Path(snakemake.output.evaluation),
    )
    tell(f"{record['task']} {record['arm']} at scale {scale}: Dice {measured['dice']:.3f}")
