"""The parts of a training that need no data: identity, precision, plans, splits, energy."""

import copy
import json
import math
import os
import re
import shutil
import time

import pandas as pd
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet

from workflow_scripts.common import nnunet_setup
from workflow_scripts.common.errors import UserError
from workflow_scripts.common.hardware import (
    Hardware,
    autocast_network,
    find_device,
    find_precision,
    set_memory_format,
)
from workflow_scripts.common.hashing import json_hash
from workflow_scripts.common.nnunet_setup import find_trainer
from workflow_scripts.common.progress import Progress
from workflow_scripts.planning.plan_overrides import override_plans
from workflow_scripts.planning.write_splits import write_splits
from workflow_scripts.records.energy_meter import EnergyMeter, EnergySettings
from workflow_scripts.trainers.curricula.schedules.schedule import Schedule, Stage
from workflow_scripts.training import provenance
from workflow_scripts.training.provenance import (
    check_identity,
    check_schedule,
    trainer_code_hash,
)

# --- device and precision


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"amx_bf16": True, "avx512_bf16": False}, "bf16"),
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": False, "avx512_bf16": False, "avx512_f": True}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_auto_precision_on_a_cpu(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert find_precision("auto", "cpu") == expected


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_a_chosen_precision_is_taken_on_a_cpu(monkeypatch, wanted):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert find_precision(wanted, "cpu") == wanted


def test_precision_on_a_gpu_is_nnunet_s():
    assert find_precision("auto", "cuda") == "amp"
    with pytest.raises(UserError, match=r"training\.precision is fp32.*set it to auto"):
        find_precision("fp32", "cuda")


@pytest.mark.parametrize(
    ("wanted", "available", "expected"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_find_device(monkeypatch, wanted, available, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert find_device(wanted) == expected


def test_a_missing_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"training\.device is cuda, but torch sees no GPU"):
        find_device("cuda")


@pytest.mark.parametrize(
    ("device", "threads", "expected"),
    [("cuda", 8, 8), ("cpu", 8, 2), ("cpu", 2, 1), ("cpu", 1, 1)],
)
def test_augmentation_workers(device, threads, expected):
    assert Hardware(device, "fp32", threads).augmentation_workers == expected


class TwoHeads(torch.nn.Module):
    """A network with deep supervision that can be switched off, like nnU-Net's."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = torch.nn.Conv3d(1, 8, 3, padding=1), torch.nn.Conv3d(8, 2, 1)
        self.deep_supervision = True

    def forward(self, x):
        output = self.head(self.conv(x))
        return [output, output[..., ::2]] if self.deep_supervision else output


def unet(features):
    """Return an nnU-Net of three stages."""
    return PlainConvUNet(
        1,
        3,
        [features, 2 * features, 4 * features],
        torch.nn.Conv3d,
        3,
        [1, 2, 2],
        2,
        2,
        2,
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )


@pytest.mark.parametrize(
    ("features", "device", "wanted", "expected"),
    [
        (8, "cpu", "auto", "channels_last"),
        (16, "cpu", "auto", "contiguous"),
        (8, "cuda", "auto", "contiguous"),
        (8, "cpu", "contiguous", "contiguous"),
        (16, "cpu", "channels_last", "channels_last"),
    ],
)
def test_the_order_in_memory_follows_the_features(features, device, wanted, expected):
    network = unet(features)
    assert set_memory_format(network, wanted, device) == expected
    weight = network.encoder.stages[1][0].convs[0].conv.weight
    last = weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert last == (expected == "channels_last")


@pytest.mark.parametrize("wanted", ["auto", "contiguous", "channels_last"])
def test_a_2d_network_is_channels_last_only_on_request(wanted):
    network = PlainConvUNet(
        1, 2, [8, 16], torch.nn.Conv2d, 3, [1, 2], 1, 2, 1, norm_op=torch.nn.InstanceNorm2d
    )
    last = wanted == "channels_last"
    assert set_memory_format(network, wanted, "cpu") == (wanted if last else "contiguous")
    weight = network.encoder.stages[1][0].convs[0].conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == last


def test_another_network_keeps_its_order():
    assert set_memory_format(TwoHeads(), "auto", "cpu") == "contiguous"


def train_two_steps(size, memory_format, bf16):
    """Return the losses of two steps and the gradient of the second."""
    torch.manual_seed(0)
    network = unet(8)
    set_memory_format(network, memory_format, "cpu")
    if bf16:
        autocast_network(network)
    x = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = sum((output - 1).square().mean() for output in network(x))
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    return losses, torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


@pytest.mark.parametrize("size", [(16, 16, 16), (8, 16, 8), (8, 4, 4)])
def test_the_order_in_memory_changes_only_rounding(size):
    """In bf16, both orders deviate equally from fp32; thin outputs were once wrong."""
    losses, exact = train_two_steps(size, "contiguous", bf16=False)
    for bf16, tolerance in ((False, 1e-4), (True, 0.02)):
        errors = []
        for memory_format in ("contiguous", "channels_last"):
            found, gradient = train_two_steps(size, memory_format, bf16)
            assert found == pytest.approx(losses, rel=tolerance)
            errors.append(float((gradient - exact).norm() / exact.norm()))
        assert errors[1] < 1.5 * errors[0] + 1e-3


def test_autocast_network_returns_fp32_near_fp32():
    torch.manual_seed(0)
    network, x = TwoHeads(), torch.randn(2, 1, 8, 8, 8)
    exact = network(x)
    seen = []
    network.head.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    autocast_network(network)
    outputs = network(x)
    assert seen == [torch.bfloat16], "it does compute in bf16"
    assert isinstance(outputs, list)
    assert [output.dtype for output in outputs] == [torch.float32] * 2
    for output, reference in zip(outputs, exact, strict=True):
        assert output.shape == reference.shape
        assert torch.allclose(output, reference, atol=0.03)
    assert not torch.equal(outputs[0], exact[0])


def test_autocast_network_without_deep_supervision_and_its_gradients():
    torch.manual_seed(0)
    network, x = TwoHeads(), torch.randn(1, 1, 4, 4, 4)
    names = list(network.state_dict())
    autocast_network(network)
    network.deep_supervision = False
    output = network(x)
    assert output.dtype == torch.float32
    output.sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in network.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())
    assert list(network.state_dict()) == names, "checkpoints are those of the plain network"


# --- identity


IDENTITY = {"epochs": 10, "seed": 1, "plans_hash": "a", "trainer_code": "c", "torch": "2.0"}


def test_identity_of_a_new_training_is_noted(tmp_path):
    path = tmp_path / "fold_0" / "identity.json"
    check_identity(IDENTITY, path, started=False, finished=False)
    assert json.loads(path.read_text()) == IDENTITY
    check_identity(dict(reversed(IDENTITY.items())), path, started=True, finished=False)


def test_identity_of_a_training_without_checkpoint_is_replaced(tmp_path):
    path = tmp_path / "identity.json"
    check_identity(IDENTITY, path, started=False, finished=False)
    check_identity({**IDENTITY, "epochs": 20}, path, started=False, finished=False)
    assert json.loads(path.read_text())["epochs"] == 20


@pytest.mark.parametrize("finished", [False, True])
def test_differing_fields_are_named_and_nothing_is_written(tmp_path, finished):
    path = tmp_path / "identity.json"
    check_identity(IDENTITY, path, started=False, finished=False)
    changed = {**IDENTITY, "epochs": 20, "seed": 2}
    message = r"epochs was 10 and is now 20; seed was 1 and is now 2"
    with pytest.raises(UserError, match=message) as caught:
        check_identity(changed, path, started=True, finished=finished)
    assert "plans_hash" not in str(caught.value)
    assert json.loads(path.read_text()) == IDENTITY


def test_a_field_that_one_side_lacks_differs(tmp_path):
    path = tmp_path / "identity.json"
    check_identity(IDENTITY, path, started=False, finished=False)
    fewer = {key: value for key, value in IDENTITY.items() if key != "seed"}
    with pytest.raises(UserError, match="seed was 1 and is now None"):
        check_identity(fewer, path, started=True, finished=False)


@pytest.mark.parametrize("field", ["trainer_code", "torch", "python"])
def test_versions_may_differ_of_a_finished_training_only(tmp_path, field):
    path = tmp_path / "identity.json"
    check_identity(IDENTITY, path, started=False, finished=False)
    other = {**IDENTITY, field: "other"}
    check_identity(other, path, started=True, finished=True)
    with pytest.raises(UserError, match=f"{field} was .* and is now 'other'"):
        check_identity(other, path, started=True, finished=False)


def test_a_checkpoint_without_identity_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"contains a checkpoint but no identity\.json"):
        check_identity(IDENTITY, tmp_path / "identity.json", started=True, finished=False)


def trained(*stages):
    """Return the epochs of a training with these stages, one epoch each."""
    rows = [(n, stage.label, stage.batch_size) for n, stage in enumerate(stages)]
    return pd.DataFrame(rows, columns=["epoch", "patch_size", "batch_size"])


def test_a_finished_training_by_another_schedule_is_refused(tmp_path):
    """A default of the schedule has changed since, which the parameters do not show."""
    small, large = Stage((8, 8, 8), 24), Stage((16, 16, 16), 9)
    schedule = Schedule((small, large), 2, 10)
    check_schedule(trained(small, large), schedule, tmp_path)
    for other in (Stage((8, 8, 8), 672), Stage((8, 8, 16), 24)):
        with pytest.raises(UserError) as caught:
            check_schedule(trained(other, large), schedule, tmp_path)
        had = f"epoch 0 had batches of {other.batch_size} patches of {other.label}"
        assert f"{tmp_path} was trained with a different schedule" in str(caught.value)
        assert f"{had}, and would now have 24 of 8x8x8." in str(caught.value)


def test_epochs_of_differing_batches_are_not_compared(tmp_path):
    schedule = Schedule((Stage((8, 8, 8), 2), Stage((16, 16, 16), 2)), 1, 10, seed=1)
    check_schedule(trained(Stage((8, 8, 8), 3)), schedule, tmp_path)


def test_json_hash():
    assert json_hash({"a": 1, "b": [1, 2]}) == json_hash({"b": [1, 2], "a": 1})
    assert json_hash({"a": [1, 2]}) != json_hash({"a": [2, 1]})
    assert json_hash({"a": 1}) != json_hash({"a": "1"})
    assert len(json_hash({})) == 16


@pytest.fixture
def copied_trainers(tmp_path, monkeypatch):
    shutil.copytree(nnunet_setup.TRAINERS / "curricula", tmp_path / "curricula")
    monkeypatch.setattr(provenance, "TRAINERS", tmp_path)
    return tmp_path / "curricula"


def test_trainer_code_hash_ignores_comments_docstrings_and_blank_lines(copied_trainers):
    before = trainer_code_hash()
    arms = copied_trainers / "arms.py"
    arms.write_text(arms.read_text().replace('"""', '"""In other words: ', 1))
    arms.write_text("# a comment\n" + arms.read_text().replace("\n\n\n", "\n\n\n\n") + "\n# end\n")
    assert trainer_code_hash() == before
    changed = arms.read_text().replace("percent = 0.5", "percent = 0.6")
    assert changed != arms.read_text()
    arms.write_text(changed)
    assert trainer_code_hash() != before


def test_trainer_code_hash_covers_every_module(copied_trainers):
    hashes = {trainer_code_hash()}
    for number, path in enumerate(sorted(copied_trainers.glob("*.py")), start=1):
        path.write_text(path.read_text() + "\nADDED = 1\n")
        hashes.add(trainer_code_hash())
        assert len(hashes) == number + 1, path.name


# --- trainers


def test_find_trainer(monkeypatch):
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    assert find_trainer("nnUNetTrainerProgressivePatch").curriculum == "progressive"
    assert find_trainer("nnUNetTrainer").__module__.startswith("nnunetv2.")


def test_an_unknown_trainer_is_named(monkeypatch):
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    with pytest.raises(UserError, match=r"trainer nnUNetTrainerProgresive is neither in workflow_"):
        find_trainer("nnUNetTrainerProgresive")


# --- progress


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_progress_lines(clock, capsys):
    progress = Progress("Task04 random fold 0", every_seconds=10)
    progress.start(2, 12, "epoch")
    clock[0] += 30
    progress.show(3, ", patch 8x8x8")
    clock[0] += 5
    progress.show(4)
    clock[0] += 400
    progress.show(7)
    clock[0] += 1
    progress.show(12)
    assert capsys.readouterr().err.splitlines() == [
        "Task04 random fold 0: epoch 3/12, 4 min 30 s left, patch 8x8x8",
        "Task04 random fold 0: epoch 7/12, 7 min 15 s left",
        "Task04 random fold 0: epoch 12/12, done",
    ]


def test_progress_does_not_promise_the_end_before_the_work_that_follows(clock, capsys):
    """The final validation after the last epoch takes a minute or an hour."""
    progress = Progress("t")
    progress.start(0, 2, "epoch", then="final validation")
    clock[0] += 20
    progress.show(1)
    progress.show(2, ", pseudo Dice 0.5")
    assert capsys.readouterr().err.splitlines() == [
        "t: epoch 1/2, 0 min 20 s left before the final validation",
        "t: epoch 2/2, now the final validation, pseudo Dice 0.5",
    ]


def test_progress_in_hours(clock, capsys):
    progress = Progress("t")
    progress.start(0, 100, "epoch")
    clock[0] += 120
    progress.show(1)
    assert capsys.readouterr().err == "t: epoch 1/100, 3 h 18 min left\n"


# --- plans and splits


def planned(architecture="plain"):
    blocks = "n_conv_per_stage" if architecture == "plain" else "n_blocks_per_stage"
    return {
        "dataset_name": "Dataset098_Fake",
        "plans_name": "nnUNetPlans",
        "configurations": {
            "3d_fullres": {
                "data_identifier": "nnUNetPlans_3d_fullres",
                "patch_size": [40, 56, 40],
                "batch_size": 9,
                "architecture": {
                    "arch_kwargs": {
                        "n_stages": 4,
                        "features_per_stage": [32, 64, 128, 256],
                        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
                        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
                        blocks: [1, 2, 3, 4],
                        "n_conv_per_stage_decoder": [5, 6, 7],
                    }
                },
            },
            "2d": {},
        },
    }


def overridden(**overrides):
    plans = override_plans(planned(), "study", "3d_fullres", overrides)
    return plans["configurations"]["3d_fullres"]


def test_plans_without_overrides_change_their_name_alone():
    before = planned()
    plans = override_plans(before, "study", "3d_fullres", {})
    assert plans == {**planned(), "plans_name": "study"}
    assert before == planned(), "the argument is left alone"


def test_patch_and_batch_are_overridden():
    chosen = overridden(patch_size=[20, 24, 48], batch_size=2)
    assert (chosen["patch_size"], chosen["batch_size"]) == ([20, 24, 48], 2)
    assert chosen["data_identifier"] == "nnUNetPlans_3d_fullres", "the same preprocessed data"


@pytest.mark.parametrize(
    ("size", "nearest"),
    [([40, 50, 40], [40, 48, 40]), ([2, 3, 41], [4, 8, 40]), ([40, 48, 45], [40, 48, 48])],
)
def test_an_indivisible_patch_names_the_nearest(size, nearest):
    with pytest.raises(UserError) as caught:
        overridden(patch_size=size)
    assert f"patch_size {size} must be multiples of [4, 8, 8]" in str(caught.value)
    assert f"the nearest is {nearest}" in str(caught.value)


@pytest.mark.parametrize("architecture", ["plain", "residual"])
def test_fewer_features_shorten_every_list(architecture):
    overrides = {"features_per_stage": [4, 8, 16], "patch_size": [2, 4, 4]}
    plans = override_plans(planned(architecture), "study", "3d_fullres", overrides)
    kwargs = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    blocks = "n_conv_per_stage" if architecture == "plain" else "n_blocks_per_stage"
    assert kwargs == {
        "n_stages": 3,
        "features_per_stage": [4, 8, 16],
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        blocks: [1, 2, 3],
        "n_conv_per_stage_decoder": [5, 6],
    }
    assert plans["configurations"]["3d_fullres"]["patch_size"] == [2, 4, 4], "units of 3 stages"


@pytest.mark.parametrize("features", [[4] * 5, [4]])
def test_other_numbers_of_features_are_refused(features):
    with pytest.raises(UserError, match=f"has {len(features)} entries.* has 4 stages: give 2 to 4"):
        overridden(features_per_stage=features)


def test_a_configuration_that_was_not_planned_is_named():
    with pytest.raises(UserError, match="is 3d_lowres, but nnU-Net planned only 2d, 3d_fullres"):
        override_plans(planned(), "study", "3d_lowres", {})


def test_a_plan_of_2d_images_says_what_to_set():
    plans = planned()
    del plans["configurations"]["3d_fullres"]
    with pytest.raises(UserError, match=r"planned only 2d .* 2D: set planning\.configuration: 2d$"):
        override_plans(plans, "study", "3d_fullres", {})


def test_a_patch_with_other_axes_than_the_plan_is_refused():
    with pytest.raises(UserError, match=r"patch_size \[16, 16\] has 2 axes, but .* has 3$"):
        overridden(patch_size=[16, 16])


def test_splits_are_nnunet_s():
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    cases = [f"case_{number:03d}" for number in range(23)]
    splits = write_splits(cases[::-1])
    assert splits == generate_crossval_split(cases, seed=12345, n_splits=5)
    assert json.loads(json.dumps(splits)) == splits
    assert sorted(case for split in splits for case in split["val"]) == cases
    assert all(sorted(split["train"] + split["val"]) == cases for split in splits)


def test_too_few_cases_are_refused():
    with pytest.raises(UserError, match="4 cases cannot be split into 5 folds"):
        write_splits(list("abcd"))
    assert len(write_splits(list("abcde"))) == 5


# --- energy


def all_nan(reading):
    names = ("kwh", "cpu_kwh", "gpu_kwh", "ram_kwh", "kg_co2eq")
    return all(math.isnan(getattr(reading, name)) for name in names)


@pytest.fixture
def tracker(monkeypatch):
    """Replace codecarbon's tracker; `fail` names the calls that raise."""
    import codecarbon

    class Tracker:
        fail: tuple[str, ...] = ()
        energy = 2.0

        def __init__(self, **_):
            self.called("init")

        def start_task(self, name):
            self.called("start")

        def stop_task(self, name):
            self.called("stop")
            return copy.copy(self)

        energy_consumed = property(lambda self: self.energy)
        cpu_energy = gpu_energy = ram_energy = emissions = 0.5

        def called(self, what):
            if what in self.fail:
                raise OSError(f"no sensor\nat {what}")

    monkeypatch.setattr(codecarbon, "OfflineEmissionsTracker", Tracker)
    return Tracker


def test_a_reading(tracker):
    reading = EnergyMeter(EnergySettings("DEU")).read()
    assert (reading.kwh, reading.cpu_kwh, reading.kg_co2eq, reading.error) == (2.0, 0.5, 0.5, "")


@pytest.mark.parametrize("call", ["init", "start", "stop"])
def test_a_failing_tracker_is_an_error_never_zero(tracker, monkeypatch, call):
    monkeypatch.setattr(tracker, "fail", (call,))
    meter = EnergyMeter(EnergySettings("DEU"))
    for _ in range(2):
        reading = meter.read()
        assert all_nan(reading)
        assert reading.error == f"OSError: no sensor at {call}"
    monkeypatch.setattr(tracker, "fail", ())
    assert all_nan(meter.read()), "a meter that failed must not continue as if nothing happened"


@pytest.mark.parametrize("nothing", [0.0, math.nan])
def test_no_energy_is_an_error(tracker, monkeypatch, nothing):
    monkeypatch.setattr(tracker, "energy", nothing)
    meter = EnergyMeter(EnergySettings("DEU"))
    reading = meter.read()
    assert all_nan(reading)
    assert reading.error.startswith("codecarbon measured no energy")
    monkeypatch.setattr(tracker, "energy", 1.0)
    assert meter.read().kwh == 1.0, "the next piece of work is metered"


def test_an_absent_codecarbon_is_an_error(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "codecarbon", None)
    meter = EnergyMeter(EnergySettings("DEU"))
    assert all_nan(meter.read())
    assert "codecarbon" in meter.read().error
    assert meter.describe().sensors == ""


@pytest.mark.parametrize("country", ["XXX", "UTO", "deu"])
def test_an_unknown_country_is_not_replaced_by_the_world(country):
    with pytest.raises(UserError, match=rf"energy\.country: .* for {country}; use the ISO 3166"):
        EnergyMeter(EnergySettings(country))


def burn(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        math.factorial(500)


def test_a_real_reading():
    """Germany's mix is 381 g/kWh in the codecarbon table of 2023."""
    meter = EnergyMeter(EnergySettings("DEU", "process"))
    burn(1.5)
    first = meter.read()
    burn(0.3)
    second = meter.read()
    assert first.error == second.error == ""
    assert first.kwh > 0 < first.kg_co2eq
    assert first.kwh == pytest.approx(first.cpu_kwh + first.gpu_kwh + first.ram_kwh)
    assert 0.2 < first.kg_co2eq / first.kwh < 0.6
    assert 0 < second.kwh < first.kwh, "a reading is of one piece of work, not cumulative"
    described = meter.describe()
    assert "CPU" in described.sensors
    assert described.country == "DEU"
    assert described.codecarbon


def test_energy_is_mean_power_times_seconds():
    """Compare with the processor seconds of this process, from the kernel, times the TDP."""
    meter = EnergyMeter(EnergySettings("DEU", "process"))
    sensors = meter.describe().sensors
    if "CPU: cpu_load" not in sensors:
        pytest.skip(f"the processor's power comes from a sensor on this machine: {sensors}")
    tdp = float(re.search(r"CPU: cpu_load \(([0-9.]+) W TDP\)", sensors)[1])
    # The reading covers the time between two moments within the calls of `read`.
    before = time.process_time()
    meter.read()
    began = time.process_time()
    matrix, end = torch.rand(800, 800), time.monotonic() + 4
    while time.monotonic() < end:  # like a training, torch releases the GIL
        matrix @ matrix
    ended = time.process_time()
    reading = meter.read()
    after = time.process_time()
    kwh_per_second = tdp / os.cpu_count() / 3.6e6
    least, most = (ended - began) * kwh_per_second, (after - before) * kwh_per_second
    assert 0.95 * least <= reading.cpu_kwh <= 1.05 * most
    assert most < 2 * least, "the calls took so long that nothing was checked"
    assert meter.describe().intensity_year == 2023


def test_bf16_weight_gradients_of_thin_maps_are_right():
    """Without the guard they are read from uninitialised memory (AVX512-BF16 processors)."""
    if find_precision("auto", "cpu") != "bf16":
        pytest.skip("this processor does not compute bf16")
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Conv3d(16, 16, 3, padding=1))
    guarded = copy.deepcopy(plain)
    autocast_network(guarded)
    for size in [(2, 1, 1), (2, 2, 2), (2, 8, 8), (4, 4, 4), (3, 5, 7)]:
        for poison in (float("nan"), 1e4):
            x = torch.randn(2, 16, *size)
            weights = torch.randn(2, 16, *size)
            used = [torch.full((n,), poison) for n in (256, 4096, 65536, 10**6) for _ in range(3)]
            del used
            gradients = []
            for network in (plain, guarded):
                network.zero_grad()
                (network(x) * weights).sum().backward()
                gradients.append(network[0].weight.grad.clone())
            error = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
            assert error < 0.03, size
