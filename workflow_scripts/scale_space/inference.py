"""Predict a fold's validation cases with one model as stock nnU-Net does; measure Dice and cost."""

import os
import resource
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

from workflow_scripts.common import hardware, nnunet_setup
from workflow_scripts.common.nnunet_setup import TRAINERS
from workflow_scripts.records.energy_meter import EnergyMeter
from workflow_scripts.records.energy_settings import EnergySettings
from workflow_scripts.records.flop_counter import FlopTable


@dataclass(frozen=True)
class ValidationCases:
    """Cases to predict.

    Attributes:
        fold: number of the fold; it also selects the checkpoint of a model.
        cases: identifiers of the cases.
        preprocessed: nnU-Net's preprocessed dataset.
    """

    fold: int
    cases: list[str]
    preprocessed: Path


@dataclass(frozen=True)
class InferenceSettings:
    """Settings for predicting and metering cases.

    Attributes:
        device, precision, deterministic, memory_format: see `hardware.Request`.
        energy: settings of the energy meter.
        mirroring: whether to use test-time mirroring.
        threads: number of cores to use.
    """

    device: str
    precision: str
    deterministic: bool
    energy: EnergySettings
    mirroring: bool
    threads: int
    memory_format: str = "auto"

    @classmethod
    def of(
        cls, training: Mapping[str, Any], energy: Mapping[str, Any], mirroring: bool, threads: int
    ) -> Self:
        """Return the settings from config sections; `training` has only the hardware's keys."""
        metered = EnergySettings(**energy)
        return cls(**training, energy=metered, mirroring=mirroring, threads=threads)


def evaluate_scale(
    model: Path, validated: ValidationCases, settings: InferenceSettings, summary_file: Path
) -> dict[str, Any]:
    """Predict the cases; return Dice and cost.

    Every model, including the stock one, is loaded from its folder and run with nnU-Net's own
    sliding window, so all are measured by the same code. Seconds cover only the network: the
    sliding window with its mirrored passes. Energy also covers reading and export of the cases.

    Args:
        model: nnU-Net's model folder (`plans.json`, `fold_{fold}/checkpoint_final.pth`).
        validated: cases to predict, and the fold whose checkpoint predicts them.
        settings: settings for predicting and metering.
        summary_file: file for nnU-Net's summary, which contains every case.
    """
    hardware_used = hardware.prepare(settings, settings.threads)
    nnunet_setup.configure(hardware_used.processes)
    cases, preprocessed, mirroring = validated.cases, validated.preprocessed, settings.mirroring
    os.environ["nnUNet_extTrainer"] = os.pathsep.join([str(model / "trainers"), str(TRAINERS)])

    torch_device = torch.device(hardware_used.device)
    predictor: Any = nnUNetPredictor(use_mirroring=mirroring, device=torch_device, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (validated.fold,))
    network, patch = predictor.network, predictor.configuration_manager.patch_size
    channels = _input_channels(predictor)
    gmac = FlopTable(network, channels).validation_step(1, tuple(patch)) / 2e9
    hardware.prepare_network(network, hardware_used)
    network.to(torch_device).eval()
    warm_up(network, torch.zeros((1, channels, *patch), device=torch_device))
    passes = [0]
    network.register_forward_hook(lambda _, x, __: passes.__setitem__(0, passes[0] + len(x[0])))

    folder = preprocessed / predictor.configuration_manager.data_identifier
    dataset = infer_dataset_class(str(folder))(str(folder), cases)
    seconds = 0.0
    meter = EnergyMeter(settings.energy, hardware_used.gpu)
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
                num_threads_torch=hardware_used.threads,
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
        "peak_memory_mb": _peak_memory_mb(hardware_used.device),
        **asdict(hardware_used),
        "mirroring": mirroring and predictor.allowed_mirroring_axes is not None,
    }


@torch.inference_mode()
def warm_up(network: torch.nn.Module, patch: torch.Tensor) -> None:
    """Predict a patch without measuring it: the first pass in a precision chooses its kernels.

    The precision is nnU-Net's for prediction: mixed on CUDA.
    """
    with torch.autocast(patch.device.type, enabled=patch.device.type == "cuda"):
        network(patch)


def _input_channels(predictor: Any) -> int:
    return determine_num_input_channels(
        predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
    )


def _peak_memory_mb(device: str) -> float:
    """Return the peak memory of tensors on the GPU, or of the process on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
