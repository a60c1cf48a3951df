"""One writer a folder: refused while its holder lives, taken over when the holder is gone, given back at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raytraffic.files import Location
from raytraffic.lease import held
from tests.fixtures_s3 import _s3_server, s3_bucket

__all__ = ["_s3_server", "s3_bucket"]

QUICK = 0.1
HOLDER = "import sys, time; from raytraffic.lease import held; from raytraffic.files import Location\n" + (
    "with held(Location.of(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process of this machine that holds the folder's lease."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def lease(folder: Path) -> dict[str, object]:
    """What stands in the lease."""
    return dict(json.loads((folder / "lease.json").read_bytes()))


def elsewhere(folder: Path) -> None:
    """Makes the lease that of a process of another machine."""
    (folder / "lease.json").write_bytes(json.dumps({**lease(folder), "host": "other-machine"}).encode())


def test_it_stands_while_held_and_is_gone_after(tmp_path: Path) -> None:
    with held(Location.of(tmp_path / "out"), QUICK):
        first = lease(tmp_path / "out")
        assert first["pid"] == os.getpid()
        time.sleep(5 * QUICK)
        assert lease(tmp_path / "out")["renewed"] > first["renewed"]  # type: ignore[operator]
    assert not list((tmp_path / "out").iterdir())
    with held(Location.of(tmp_path / "out"), QUICK):
        pass


def test_it_is_given_back_where_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), held(Location.of(tmp_path), QUICK):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_another_process_is_refused_at_once(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    before = lease(tmp_path)
    began = time.monotonic()
    wanted = rf"lease\.json: process {holder.pid} on .* writes to this folder now, expected no other"
    with pytest.raises(ValueError, match=wanted), held(Location.of(tmp_path)):
        pytest.fail("held twice")
    assert time.monotonic() - began < 5 and lease(tmp_path)["holder"] == before["holder"]


def test_a_dead_process_s_lease_is_taken_over_at_once(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "lease.json").exists()
    with held(Location.of(tmp_path), 60.0):
        assert lease(tmp_path)["pid"] == os.getpid()


def test_a_machine_that_was_started_anew_holds_nothing(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    (tmp_path / "lease.json").write_bytes(json.dumps({**lease(tmp_path), "boot": "an earlier one"}).encode())
    with held(Location.of(tmp_path), 60.0):
        assert lease(tmp_path)["pid"] == os.getpid()


def test_another_machine_s_lease_that_stands_still_is_taken_over(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    os.kill(holder.pid, signal.SIGSTOP)
    elsewhere(tmp_path)
    began = time.monotonic()
    with held(Location.of(tmp_path), QUICK):
        assert time.monotonic() - began >= 3 * QUICK and lease(tmp_path)["pid"] == os.getpid()


def test_another_machine_s_lease_that_is_renewed_is_respected(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    elsewhere(tmp_path)
    over = threading.Event()

    def renew() -> None:
        count = 0
        while not over.wait(QUICK):
            count += 1
            Location.of(tmp_path / "lease.json").write_bytes(json.dumps({**lease(tmp_path), "renewed": count}).encode())

    os.kill(holder.pid, signal.SIGSTOP)
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(ValueError, match="on other-machine writes to this folder now"), held(Location.of(tmp_path), QUICK):
            pytest.fail("held twice")
    finally:
        over.set()
        thread.join()


def test_who_was_taken_over_leaves_the_lease_alone(tmp_path: Path) -> None:
    with held(Location.of(tmp_path), QUICK):
        other = {**lease(tmp_path), "holder": "another"}
        (tmp_path / "lease.json").write_bytes(json.dumps(other).encode())
        time.sleep(4 * QUICK)
        assert lease(tmp_path) == other
    assert lease(tmp_path) == other


def test_of_two_that_come_at_once_one_is_refused(tmp_path: Path) -> None:
    gate = threading.Barrier(2)
    outcomes: list[str] = []

    def come() -> None:
        gate.wait()
        try:
            with held(Location.of(tmp_path), QUICK):
                outcomes.append("held")
                time.sleep(0.5)
        except ValueError:
            outcomes.append("refused")

    threads = [threading.Thread(target=come) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", "refused"]


def test_a_lease_in_s3(request: pytest.FixtureRequest) -> None:
    folder = Location.of(request.getfixturevalue("s3_bucket") + "/out")
    with held(folder, QUICK), pytest.raises(ValueError, match=r"s3://.*lease\.json: process"), held(folder, QUICK):
        pytest.fail("held twice")
    assert not folder.list()


def test_a_file_that_is_no_lease_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lease.json").write_bytes(b"{")
    with pytest.raises(ValueError, match=r"lease\.json: .*expected a lease"), held(Location.of(tmp_path), QUICK):
        pytest.fail("held")


def test_where_nothing_is_known_of_processes_a_dead_one_s_lease_is_taken_over_too(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    holder.kill()
    holder.wait()
    (tmp_path / "lease.json").write_bytes(json.dumps({**lease(tmp_path), "boot": "", "began": ""}).encode())
    monkeypatch.setattr("raytraffic.lease._boot", lambda: "")
    monkeypatch.setattr("raytraffic.lease._began", lambda pid: "")
    with held(Location.of(tmp_path), QUICK):
        assert lease(tmp_path)["pid"] == os.getpid()


def test_a_store_that_fails_for_a_moment_does_not_end_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, failed = Location.write_bytes, threading.Event()

    def fail_once(self: Location, data: bytes) -> None:
        if not failed.is_set() and threading.current_thread().name == "raytraffic-lease":
            failed.set()
            raise OSError("503 Slow Down")
        write(self, data)

    monkeypatch.setattr(Location, "write_bytes", fail_once)
    with held(Location.of(tmp_path), QUICK):
        time.sleep(6 * QUICK)
        assert failed.is_set() and lease(tmp_path)["renewed"] >= 2  # type: ignore[operator]
