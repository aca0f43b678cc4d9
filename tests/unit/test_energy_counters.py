"""Energy counters against the energy that was put into made-up ones: right, or an error."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import codecarbon
import psutil
import pytest
from codecarbon.core import hardware_cache, util
from codecarbon.external import ram

from helpers.made_up_rapl import MadeUpRapl, install
from workflow_scripts.common.gpus import Gpu
from workflow_scripts.records import energy_counters, processor_time
from workflow_scripts.records.energy_meter import EnergyMeter, EnergySettings
from workflow_scripts.records.processor_time import ProcessorTime

ROOT = Path(__file__).resolve().parents[2]
JOULES = 3.6e6


@pytest.fixture
def rapl(tmp_path, monkeypatch):
    made = MadeUpRapl(tmp_path)
    install(made, monkeypatch.setattr)
    return made


class Clock:
    """The processor time and the clock that a counted processor sees."""

    def __init__(self, monkeypatch):
        self.own = self.machine = self.seconds = 0.0
        self.since = ProcessorTime.since
        monkeypatch.setattr(energy_counters, "ProcessorTime", self)
        clock = SimpleNamespace(monotonic=lambda: self.seconds)
        monkeypatch.setattr(energy_counters, "time", clock)

    def now(self):
        return ProcessorTime(self.own, self.machine)

    def work(self, own, machine, seconds=1.0):
        self.own += own
        self.machine += machine
        self.seconds += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def meter_of(mode):
    meter = EnergyMeter(EnergySettings("DEU", mode))
    assert meter.error == ""
    return meter


def joules(reading):
    assert reading.error == ""
    return reading.cpu_kwh * JOULES


def sample(meter):
    """Read the counters as codecarbon's monitor does every second."""
    processor(meter).monitor_power()


def processor(meter):
    return next(d for d in meter._tracker._hardware if isinstance(d, energy_counters.CPU))


@pytest.mark.parametrize(
    ("mode", "own", "machine", "charged"),
    [
        ("machine", 0.0, 2.0, 36),
        ("process", 0.0, 2.0, 0),
        ("process", 0.5, 2.0, 9),
        ("process", 2.0, 2.0, 36),
        ("process", 0.01, 0.02, 0.36),  # an idle machine's energy belongs to no one
    ],
)
def test_a_training_is_charged_its_share_of_the_processor_time(
    rapl, clock, mode, own, machine, charged
):
    package = rapl.add("0", "package-0")
    meter = meter_of(mode)
    assert meter.describe().cpu_source == "counter"
    for _ in range(2):
        clock.work(own, machine)
        package.add(36)
        assert joules(meter.read()) == pytest.approx(charged, rel=1e-4, abs=1e-4)


def test_trainings_side_by_side_sum_to_the_energy_put_in(rapl, clock):
    package = rapl.add("0", "package-0")
    meters = [meter_of("process") for _ in range(3)]
    spent = [(1.0, 2.0, 0.0), (3.0, 0.5, 0.0), (0.5, 3.3, 0.0)]  # data loaders included
    own = [0.0, 0.0, 0.0]
    for moment in spent:
        package.add(50)
        clock.seconds += 1
        clock.machine += sum(moment)
        for number, meter in enumerate(meters):
            own[number] += moment[number]
            clock.own = own[number]
            sample(meter)
    charged = []
    for number, meter in enumerate(meters):
        clock.own = own[number]
        charged.append(joules(meter.read()))
    assert sum(charged) == pytest.approx(150, rel=1e-3)
    assert charged[2] == pytest.approx(0, abs=1e-6)


def test_work_between_two_readings_is_not_lost(rapl, clock):
    package = rapl.add("0", "package-0")
    meter = meter_of("machine")
    package.add(10)
    first = joules(meter.read())
    package.add(20)
    assert first + joules(meter.read()) == pytest.approx(30, rel=1e-4)


def test_sockets_are_summed_and_parts_counted_once(rapl, clock):
    """Cores and DRAM are parts of a package, and psys contains all packages."""
    names = {"0": "package-0", "1": "package-1", "0:0": "core", "0:1": "dram", "2": "psys"}
    domains = [
        rapl.add(number, name, joules=1000 * (n + 1))
        for n, (number, name) in enumerate(names.items())
    ]
    meter = meter_of("machine")
    clock.work(1, 1)
    for domain, spent in zip(domains, (30, 12, 20, 5, 70), strict=True):
        domain.add(spent)
    assert joules(meter.read()) == pytest.approx(42, rel=1e-4)


def test_a_counter_may_wrap_many_times_in_one_epoch(rapl, clock):
    """An hour at 150 W is 540 kJ, and counters wrap after 65 or 262 kJ."""
    package = rapl.add("0", "package-0", joules=65_000, range_joules=65_532)
    meter = meter_of("machine")
    for _ in range(120):
        clock.work(30, 30, seconds=30)
        package.add(150 * 30)
        sample(meter)
    assert joules(meter.read()) == pytest.approx(540_000, rel=1e-3)


def failed(meter, *words):
    reading = meter.read()
    assert all(word in reading.error for word in words), reading.error
    assert not reading.cpu_kwh >= 0
    assert not reading.kwh >= 0


def recovers(meter, clock, package):
    clock.work(1, 1)
    package.add(7)
    assert joules(meter.read()) == pytest.approx(7, rel=1e-4)


def test_a_suspended_process_knows_no_wraps(rapl, clock):
    """SIGSTOP, or a laptop that slept: nobody knows how often the counter wrapped."""
    package = rapl.add("0", "package-0", range_joules=65_532)
    meter = meter_of("machine")
    clock.work(1, 1, seconds=3600)
    package.add(10)
    failed(meter, "wrapped in 3600 s")
    recovers(meter, clock, package)


@pytest.mark.parametrize("limit", [262_143, None])
def test_a_reset_counter_is_an_error(rapl, clock, limit):
    package = rapl.add("0", "package-0", joules=200_000, range_joules=limit)
    meter = meter_of("machine")
    clock.work(1, 1)
    package.set(5)
    failed(meter, str(package.path))
    recovers(meter, clock, package)


@pytest.mark.parametrize("content", [None, "", "permission denied", "nan"])
def test_a_counter_that_disappears_is_an_error_and_may_come_back(rapl, clock, content):
    package = rapl.add("0", "package-0")
    meter = meter_of("machine")
    clock.work(1, 1)
    package.path.unlink()
    if content is not None:
        package.path.write_text(content)
    failed(meter, "energy counter")
    failed(meter, "energy counter")
    package.set(500)
    meter.read()
    recovers(meter, clock, package)


def test_one_missing_second_is_an_error_of_the_whole_epoch(rapl, clock):
    package = rapl.add("0", "package-0")
    meter = meter_of("machine")
    package.path.unlink()
    clock.work(1, 1)
    sample(meter)
    package.set(2000)
    clock.work(1, 1)
    sample(meter)
    failed(meter, str(package.path))


def test_a_socket_without_readable_counter_is_an_error(rapl, clock):
    package, other = rapl.add("0", "package-0"), rapl.add("1", "package-1")
    other.path.write_text("")
    meter = meter_of("machine")
    clock.work(1, 1)
    package.add(10)
    failed(meter, "package-1")


def test_parts_of_a_processor_are_not_taken_for_the_whole(rapl, clock):
    rapl.add("0", "core").add(0)
    meter = meter_of("machine")
    clock.work(1, 1)
    rapl.domains["0"].add(10)
    failed(meter, "only parts", "core")


def test_a_container_that_hides_its_machine_cannot_share(rapl, clock, tmp_path, monkeypatch):
    """lxcfs shows the processor time of the container, with which a share would be too large."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text("8 7 0:5 /proc/stat /proc/stat rw - fuse.lxcfs lxcfs rw\n")
    monkeypatch.setattr(processor_time, "MOUNTS", mounts)
    package = rapl.add("0", "package-0")
    meter = meter_of("process")
    clock.work(1, 1)
    package.add(10)
    failed(meter, "container")
    assert not meter_of("machine").read().error


# --- processor time


def test_children_belong_to_the_training_also_after_their_end():
    burn = "import time\nwhile time.process_time() < 0.6: pass\nprint(flush=True); time.sleep(99)"
    before = ProcessorTime.now()
    child = subprocess.Popen([sys.executable, "-c", burn], stdout=subprocess.PIPE)
    try:
        child.stdout.readline()
        alive = ProcessorTime.now().since(before)
    finally:
        child.kill()
        child.wait()
    ended = ProcessorTime.now().since(before)
    assert 0.55 < alive.own <= ended.own + 0.02
    assert ended.own <= ended.machine


def test_a_process_that_ends_while_it_is_read_is_counted_once(monkeypatch):
    """Its time passes to its parent, so the list is read again."""
    times = SimpleNamespace(user=1.0, system=0.0, children_user=0.0, children_system=0.0)
    reads = iter(
        [times, psutil.NoSuchProcess(1), SimpleNamespace(**vars(times) | {"children_user": 5})]
    )

    class Process:
        def children(self, recursive):
            return [] if self.ended else [self]

        ended = False

        def cpu_times(self):
            read = next(reads)
            if isinstance(read, Exception):
                Process.ended = True
                raise read
            return read

    monkeypatch.setattr(processor_time.psutil, "Process", Process)
    assert ProcessorTime.now().own == 6.0


WORKER = """
import json, os, sys, time
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
from helpers.made_up_rapl import MadeUpRapl, install
from workflow_scripts.records.energy_meter import EnergyMeter, EnergySettings
from workflow_scripts.records.processor_time import ProcessorTime
folder, duty = Path(sys.argv[2]), float(sys.argv[3])
install(MadeUpRapl(folder), setattr)
meter = EnergyMeter(EnergySettings("DEU", "process"))
meter.describe()
print("ready", flush=True)
sys.stdin.readline()
meter.read()
before, end = ProcessorTime.now(), time.monotonic() + 4
while time.monotonic() < end:
    rest = time.monotonic() + 0.02
    while time.monotonic() < rest and duty:
        pass
    time.sleep(0.02 * (1 - duty))
reading = meter.read()
spent = ProcessorTime.now().since(before)
print(json.dumps([reading.cpu_kwh * 3.6e6, spent.own / spent.machine, reading.error]))
"""


def test_real_processes_share_a_made_up_processor(tmp_path):
    """Two that compute and one that sleeps, whatever else runs on this machine."""
    package = MadeUpRapl(tmp_path).add("0", "package-0")
    command = [sys.executable, "-c", WORKER, str(ROOT), str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, duty], **pipes) for duty in ("1", "1", "0")]
    for process in processes:
        while process.stdout.readline() != "ready\n":
            assert process.poll() is None
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    put_in = package.joules
    end = time.monotonic() + 5
    while time.monotonic() < end:
        time.sleep(0.05)
        package.add(5)
    results = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
    put_in = (package.joules - put_in) * 4 / 5
    for charged, share, error in results:
        assert error == ""
        assert charged == pytest.approx(share * put_in, rel=0.2, abs=0.02 * put_in)
    assert results[2][0] < 0.05 * put_in
    assert sum(charged for charged, _, _ in results) < 1.05 * put_in


# --- parts of a machine


def test_a_slurm_job_needs_no_scontrol(monkeypatch, tmp_path):
    """And 4 of 64 cores are charged 4 of 64 parts of the processor, not the whole."""
    for module in (util, ram):
        monkeypatch.setattr(module, "SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho NumCPUs=1 TRES=cpu=1,mem=4G\n")
    for mode in ("process", "machine"):
        hardware_cache.clear_cache()
        meter = EnergyMeter(EnergySettings("DEU", mode))
        assert meter.describe().cpu_source
        assert processor(meter)._cpu_count == os.cpu_count()
        time.sleep(0.1)
        assert meter.read().error == ""


@pytest.mark.parametrize("call", ["start_task", "stop_task", "get_detected_hardware"])
@pytest.mark.parametrize("kind", [FileNotFoundError, AttributeError, KeyError, RuntimeError])
def test_a_meter_that_fails_ends_no_training(monkeypatch, call, kind):
    def fail(*_):
        raise kind("no scontrol")

    monkeypatch.setattr(codecarbon.OfflineEmissionsTracker, call, fail)
    meter = EnergyMeter(EnergySettings("DEU"))
    described = meter.describe()
    assert described.country == "DEU"
    for _ in range(2):
        assert "no scontrol" in meter.read().error


# --- GPUs


class Device:
    """A made-up NVML device, with codecarbon's own arithmetic."""

    def __new__(cls, **given):
        from codecarbon.core.gpu_device import GPUDevice

        class Made(GPUDevice):
            millijoules, watts, users = 1_000_000, 300.0, ()

            def _get_total_energy_consumption(self):
                return self.millijoules

            def _get_power_usage(self):
                if self.watts is None:
                    raise OSError("lost")
                return self.watts

            def _get_compute_processes(self):
                return [{"pid": pid} for pid in self.users]

            def _init_static_details(self):
                self._gpu_name, self._uuid = "made up", "GPU-0"

        vars_ = {name: given.pop(name) for name in list(given)}
        for name, value in vars_.items():
            setattr(Made, name, value)
        return Made(handle=None, gpu_index=0)


def gpu_of(shared, gpu=Gpu(0, "GPU-0", "H100", "GPU-0"), **given):  # noqa: B008
    found = object.__new__(energy_counters.GPU)
    device = Device(**given)
    found.devices = SimpleNamespace(
        devices=[device], start=device.start, sample_power=lambda gpu_ids: device.sample_power()
    )
    found.gpu_ids, found.num_gpus, found._gpu_ids_resolved = [0], 1, True
    return energy_counters.CountedGpu(found, shared, gpu), device


def used(counted):
    power, energy = counted.measure_power_and_energy(10.0)
    joules = energy.kWh * JOULES
    assert pytest.approx(joules) == power.W * 10
    return joules


def test_the_energy_of_a_gpu_is_what_was_put_in():
    counted, device = gpu_of(True, users=(os.getpid(),))
    assert counted.counts
    counted.start()
    device.millijoules += 3_000_000
    assert used(counted) == pytest.approx(3000, rel=1e-4)
    assert (counted.fault, counted.note) == ("", "")


def test_power_is_sampled_where_there_is_no_counter():
    counted, device = gpu_of(True, millijoules=None)
    assert not counted.counts
    counted.start()
    for device.watts in (100.0, 200.0, 300.0):
        counted.monitor_power()
    assert used(counted) == pytest.approx(2000, rel=1e-4)
    assert counted.fault == ""
    counted.start()
    device.watts = None
    used(counted)
    assert "power of GPU 0" in counted.fault


@pytest.mark.parametrize("after", [None, 5])
def test_a_lost_or_reset_counter_of_a_gpu_is_an_error(after):
    counted, device = gpu_of(True)
    counted.start()
    device.millijoules = after
    used(counted)
    assert "energy counter of GPU 0" in counted.fault
    device.millijoules = 6_000_000
    counted.start()
    device.millijoules += 2_000_000
    assert used(counted) == pytest.approx(2000, rel=1e-4)
    assert counted.fault == ""


def test_a_gpu_that_cannot_be_read_is_an_error():
    counted, device = gpu_of(True)
    counted.start()
    device._get_energy_kwh = None
    used(counted)
    assert "GPU 0 could not be read" in counted.fault


PART = Gpu(0, "MIG-7", "H100 MIG 1g.10gb", "GPU-0")


@pytest.mark.parametrize("shared", [True, False], ids=["process", "machine"])
@pytest.mark.parametrize(
    ("gpu", "users", "note"),
    [
        (PART, (), "divided (MIG)"),
        (Gpu(0, "GPU-0", "H100", "GPU-0"), (os.getpid(), 1), "another process used GPU 0"),
        (Gpu(0, "GPU-0", "H100", "GPU-0"), (1, 2), "another process used GPU 0"),
        (Gpu(0, "GPU-0", "H100", "GPU-0"), (1,), ""),  # perhaps our number outside the container
    ],
)
def test_a_card_used_by_others_is_an_error_or_noted(shared, gpu, users, note):
    counted, device = gpu_of(shared, gpu, users=users)
    counted.start()
    device.users = ()  # the other one has ended
    device.millijoules += 1_000_000
    used(counted)
    assert note in counted.note
    assert bool(counted.note) == bool(note)
    assert bool(counted.fault) == (shared and bool(note))


def test_a_training_on_the_processor_is_not_charged_for_gpus(monkeypatch):
    meter = EnergyMeter(EnergySettings("DEU", "process"))
    hardware = meter._tracker._hardware
    counted, _ = gpu_of(True)
    counted.__class__ = energy_counters.GPU
    hardware.append(counted)
    meter._replace_devices()
    assert [
        type(device).__name__ for device in hardware if "GPU" in type(device).__name__.upper()
    ] == []
