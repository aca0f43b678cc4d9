"""The lease on a folder, with real processes that hold it, die, sleep and race for it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from workflow_scripts.common.errors import UserError
from workflow_scripts.training import lease
from workflow_scripts.training.lease import Lease, LeaseLostError, describe_process, hold

ROOT = Path(__file__).parents[2]
HOLDER = """
import signal, sys, time
from pathlib import Path

from workflow_scripts.training import lease
from workflow_scripts.common.errors import UserError

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
lease.HEARTBEAT = 0.02
folder, stale, rest = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
if rest == "sigterm":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
try:
    with lease.hold(folder, stale, 0) as held:
        print("held", flush=True)
        if rest == "fail":
            raise ValueError("something else")
        if rest == "brief":
            sys.exit()
        while True:
            time.sleep(0.005)
            if (folder / "write").exists():
                held.check()
                (folder / "written").touch()
except UserError as error:
    print(f"{type(error).__name__}: {error}", flush=True)
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT", 0.02)
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def start(tmp_path):
    """Start a process that takes the lease on `tmp_path`; return it once the lease is held."""
    started = []

    def begin(rest="hold", stale=60.0, **environment):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, tmp_path, str(stale), rest],
            env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def take(folder, stale=60.0, wait=0.0):
    with hold(folder, stale, wait) as held:
        held.check()


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path, start):
    holder = start(SLURM_JOB_ID="77")
    with pytest.raises(UserError) as caught:
        take(tmp_path)
    said = str(caught.value)
    host = re.escape(describe_process()["host"])
    assert re.match(
        rf"{tmp_path} is being trained by another process: job 77, process {holder.pid} on {host}, "
        r"since 20[-0-9T:]+\+00:00, last heartbeat \d+ s ago\. Wait until it has ended, or end it "
        r"\(scancel 77\): what it has trained is kept",
        said,
    )
    assert holder.poll() is None
    with pytest.raises(UserError, match=r"still|scancel 77"):
        take(tmp_path)


def test_a_killed_holder_is_followed_at_once(tmp_path, start, capsys):
    holder = start()
    holder.kill()
    holder.wait()
    take(tmp_path)
    assert f"process {holder.pid} on " in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_zombie_is_dead(tmp_path, start):
    holder = start()
    holder.kill()
    deadline = time.monotonic() + 60
    while ") Z" not in Path(f"/proc/{holder.pid}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    take(tmp_path)


@pytest.mark.parametrize(
    ("rest", "number"),
    [("brief", None), ("fail", None), ("sigterm", signal.SIGTERM), ("hold", signal.SIGINT)],
)
def test_every_ordinary_exit_releases_it(tmp_path, start, rest, number):
    holder = start(rest)
    if number:
        holder.send_signal(number)
    holder.wait(60)
    assert not list(tmp_path.iterdir())


def test_a_holder_that_sleeps_loses_it_and_writes_nothing_when_it_wakes(tmp_path, start):
    holder = start()
    holder.send_signal(signal.SIGSTOP)
    taker = Lease(tmp_path, stale_minutes=0.3 / 60)
    began = time.monotonic()
    taker.take(wait_minutes=0)
    assert time.monotonic() - began > 0.3, "it might have been asleep only briefly"
    (tmp_path / "write").touch()
    holder.send_signal(signal.SIGCONT)
    said, _ = holder.communicate(timeout=60)
    assert said.startswith(f"LeaseLostError: {tmp_path} was taken over by another process (process")
    assert f"process {os.getpid()} on " in said
    assert not (tmp_path / "written").exists()
    taker.check()
    taker.give_up()


def test_the_heartbeat_notices_the_loss_by_itself(tmp_path):
    with pytest.raises(LeaseLostError), hold(tmp_path, 60, 0) as held:
        assert not held.lost
        put_foreign(tmp_path)
        deadline = time.monotonic() + 60
        while not held.lost:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        held.check()
    assert (tmp_path / "lease/foreign.json").exists(), "another's lease is never removed"


def put_foreign(folder, **fields):
    """Write a lease of a process on another machine, which nothing keeps alive."""
    directory = folder / "lease"
    directory.mkdir(exist_ok=True)
    for path in directory.iterdir():
        path.unlink()
    holder = describe_process() | {"host": "far", "machine": "other", "token": "foreign", **fields}
    (directory / "foreign.json").write_text(json.dumps(holder))
    return directory / "foreign.json"


def test_a_lost_machine_is_given_up_after_its_time(tmp_path):
    put_foreign(tmp_path)
    began = time.monotonic()
    take(tmp_path, stale=0.5 / 60, wait=0)
    assert time.monotonic() - began > 0.5


@pytest.mark.parametrize("skew", [-86400.0, 86400.0])
def test_a_machine_whose_clock_is_wrong_is_alive_while_it_beats(tmp_path, skew):
    file, ended = put_foreign(tmp_path), threading.Event()

    def beat():
        while not ended.wait(0.02):
            os.utime(file, (time.time() + skew,) * 2)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match="on far, since"):
            take(tmp_path, stale=2 / 60, wait=3 / 60)
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize(
    ("job", "restarts", "follows"), [("5", "1", True), ("5", "0", False), ("6", "1", False)]
)
def test_a_requeued_job_follows_itself_at_once(tmp_path, monkeypatch, job, restarts, follows):
    put_foreign(tmp_path, job="5", restarts=0)
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    began = time.monotonic()
    take(tmp_path, stale=(60 if follows else 0.4 / 60), wait=0)
    assert follows or time.monotonic() - began > 0.4


def test_another_process_with_the_same_number_is_not_the_holder(tmp_path):
    me = describe_process()
    put_foreign(tmp_path, **{**me, "process_started": "1", "token": "foreign"})
    take(tmp_path)
    file = put_foreign(tmp_path, **{**me, "token": "foreign"})
    began = time.monotonic()
    take(tmp_path, stale=0.3 / 60)
    assert time.monotonic() - began > 0.3, "alive, although its heartbeat has stopped"
    assert not file.exists()


def test_one_waits_until_the_holder_has_ended(tmp_path, start, capsys):
    holder = start()
    ending = threading.Timer(0.3, holder.send_signal, [signal.SIGINT])
    ending.start()
    take(tmp_path, wait=1)
    ending.join()
    said = capsys.readouterr().err
    assert said.startswith(f"{tmp_path}: waiting for process {holder.pid} on ")
    assert said.count("\n") == 1
    assert holder.wait(60) == -signal.SIGINT


@pytest.mark.parametrize("content", ["", "{", '{"token": "foreign"}'])
def test_a_damaged_lease_is_taken_over_when_it_is_stale(tmp_path, content):
    put_foreign(tmp_path).write_text(content)
    take(tmp_path, stale=0.3 / 60)
    assert not list(tmp_path.iterdir())


def test_what_is_no_lease_is_named(tmp_path):
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease/something").touch()
    with pytest.raises(UserError, match=rf"^cannot create {tmp_path}/lease \(.*\); remove it$"):
        take(tmp_path, stale=0.3 / 60)


RACER = """
import os, sys, time
from pathlib import Path

from workflow_scripts.training import lease
from workflow_scripts.common.errors import UserError

lease.HEARTBEAT = 0.02
root, name, rounds, racers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])


def meet(place, number):
    (root / f"{place}_{number}_{name}").touch()
    while sum(entry.startswith(f"{place}_{number}_") for entry in os.listdir(root)) < racers:
        time.sleep(0.001)


for number in range(rounds):
    folder = root / f"round_{number}"
    meet("begin", number)
    mine = lease.Lease(folder, 60)
    try:
        mine.take(0)
        (folder / f"winner_{name}").touch()
    except UserError:
        (folder / f"loser_{name}").touch()
    meet("end", number)
    mine.give_up()
"""


def test_of_several_takers_of_a_stale_lease_one_wins(tmp_path):
    """Each round has the lease of a dead process, and four processes that compete for it."""
    rounds, racers = 25, 4
    for number in range(rounds):
        (tmp_path / f"round_{number}").mkdir()
        me = describe_process()
        put_foreign(tmp_path / f"round_{number}", **{**me, "process_started": "1"})
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, tmp_path, str(name), str(rounds), str(racers)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=(tmp_path / f"{name}.log").open("w"),
        )
        for name in range(racers)
    ]
    try:
        deadline = time.monotonic() + 300
        while any(process.poll() is None for process in processes):
            assert time.monotonic() < deadline
            for name, process in enumerate(processes):  # the others would wait for it
                assert not process.poll(), (tmp_path / f"{name}.log").read_text()
            time.sleep(0.05)
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    for number in range(rounds):
        names = [path.name for path in (tmp_path / f"round_{number}").iterdir()]
        assert sum(name.startswith("winner") for name in names) == 1, names
        assert sum(name.startswith("loser") for name in names) == racers - 1, names
        assert len(names) == racers, "no lease is left"
