"""`ray job submit` of the jobs to a cluster that asks for a token: each ends well, is followed, is stopped, and is refused without one."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from raytraffic.checkpoint import committed
from raytraffic.files import Location
from tests.ray.conftest import CLUSTER
from tests.ray.test_train import LIMIT, REPOSITORY

pytestmark = pytest.mark.slow

CITY = "synthetic:east?step=60&grid=4x4&days=12"
TOKEN = "0123456789abcdef0123456789abcdef"


@dataclass(frozen=True)
class Head:
    """A head node of its own: where its door is, and the environment of a client that has the token."""

    address: str
    environment: dict[str, str]

    def ray(self, *words: str, token: bool = True, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command of ray's, from the repository's root."""
        hidden = {} if token else {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "", "RAY_AUTH_MODE": "disabled"}
        environment = {**self.environment, **hidden}
        command = [str(Path(sys.executable).parent / "ray"), *words]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def submit(self, job: str, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A job's script with the repository as working directory, followed to its end."""
        words = ["job", "submit", "--address", self.address, "--working-dir", ".", "--", "python", f"jobs/{job}.py", *options]
        return self.ray(*words, check=check)


def free_port() -> int:
    """A port nothing listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def head(short_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """`ray start --head` with token authentication, on the loopback interface, in a folder of its own."""
    home = tmp_path_factory.mktemp("home")
    port, door = free_port(), free_port()
    environment = {
        **os.environ,
        **CLUSTER,
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # whose `python` the jobs are run with
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "OMP_NUM_THREADS": "1",
        "no_proxy": "127.0.0.1",
        "NO_PROXY": "127.0.0.1",
    }
    environment.pop("RAY_ADDRESS", None)
    folder = f"{short_folder}/jobs"
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats", "--num-cpus", "2"]
    command += ["--node-ip-address", "127.0.0.1", "--port", str(port), "--dashboard-port", str(door), "--temp-dir", folder]
    log = (home / "log").open("wb")
    process = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{door}"
    deadline = time.monotonic() + LIMIT
    while _status(address, TOKEN) != 200:
        assert process.poll() is None and time.monotonic() < deadline, (home / "log").read_text()
        time.sleep(0.5)
    yield Head(address, environment)
    process.terminate()  # a blocked `ray start` takes its node down with it
    process.wait(60)
    log.close()


def _status(address: str, token: str | None) -> int:
    request = urllib.request.Request(f"{address}/api/version", headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_the_door_is_locked(head: Head) -> None:
    assert [_status(head.address, token) for token in (TOKEN, None, TOKEN[::-1])] == [200, 401, 403]
    refused = head.ray("job", "submit", "--address", head.address, "--", "python", "-c", "print('in')", token=False, check=False)
    assert refused.returncode != 0 and "in\n" not in refused.stdout
    assert re.search("401|[Aa]uthentication|[Uu]nauthorized", refused.stdout + refused.stderr)


def test_the_whole_line_by_jobs(head: Head, tmp_path: Path) -> None:
    store, run, evaluation, out = (str(tmp_path / name) for name in ("store", "run", "evaluation", "forecast"))
    told = head.submit("prepare", "--sources", CITY, "--out", store).stdout
    assert "event=progress" in told and "prepared 1 cities" in told and "succeeded" in told
    settings = ["--preset", "tiny", "--steps", "10", "--batch", "4", "--validate-every", "5"]
    head.submit("train", "--store", store, "--out", run, *settings)
    assert committed(Location.of(f"{run}/best"))
    quick = ["--draws", "2", "--steps", "2"]
    head.submit("evaluate", "--checkpoint", f"{run}/best", "--store", store, "--out", evaluation, "--stride", "16", *quick)
    assert (tmp_path / "evaluation" / "report.html").stat().st_size > 1000
    head.submit("forecast", "--checkpoint", f"{run}/best", "--store", store, "--out", out, "--hours", "6", "--workers", "1", *quick)
    assert json.loads((tmp_path / "forecast" / "summary.json").read_bytes())["stations"] == 16


def test_a_mistake_ends_the_job_with_one_line(head: Head, tmp_path: Path) -> None:
    done = head.submit("train", "--store", str(tmp_path / "none"), "--out", str(tmp_path / "run"), check=False)
    assert done.returncode == 1
    assert f"raytraffic train: {tmp_path}/none" in done.stdout + done.stderr and "Traceback" not in done.stdout


def test_a_job_is_stopped(head: Head, tmp_path: Path) -> None:
    store, run = str(tmp_path / "store"), tmp_path / "run"
    head.submit("prepare", "--sources", CITY, "--out", store)
    settings = ["--preset", "tiny", "--steps", "4000", "--batch", "4", "--validate-every", "10", "--keep", "1"]
    words = ["job", "submit", "--address", head.address, "--working-dir", ".", "--no-wait", "--submission-id", "to-stop", "--"]
    head.ray(*words, "python", "jobs/train.py", "--store", store, "--out", str(run), *settings)
    deadline = time.monotonic() + LIMIT
    while not list(run.glob("checkpoints/step-*/committed.json")):
        assert time.monotonic() < deadline, head.ray("job", "logs", "to-stop", "--address", head.address).stdout
        time.sleep(0.2)
    head.ray("job", "stop", "to-stop", "--address", head.address)
    assert "STOPPED" in head.ray("job", "status", "to-stop", "--address", head.address).stdout.upper()
    reached = max(int(path.parent.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*/committed.json"))
    assert 0 < reached < 4000
