"""cluster.yaml: Ray's own schema and loader accept it, it has the project's pins, and nobody without the token gets in. AWS is never asked.

What passes here was not launched: an image, a security group and two instance profiles are the operator's to supply.
"""

from __future__ import annotations

import copy
import functools
import json
import re
import shlex
import socket
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import ray.autoscaler
import tyro
import yaml  # type: ignore[import-untyped]
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for
from ray.autoscaler._private.util import prepare_config, validate_config

from raytraffic.cli import VERBS

REPOSITORY = Path(__file__).resolve().parent.parent.parent
GPU_GROUPS = ("gpu_training", "gpu_inference")


@pytest.fixture
def config() -> dict[str, Any]:
    """cluster.yaml as it stands; a test may spoil its copy."""
    loaded: dict[str, Any] = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
    return copy.deepcopy(loaded)  # aliases of YAML are shared objects


@pytest.fixture
def pins() -> dict[str, str]:
    """Package name -> pinned version."""
    return dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().splitlines())


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection is an error: the file must be checked before there is an account."""

    def refuse(*_: object) -> None:
        raise AssertionError("a test of cluster.yaml opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def start_commands(config: dict[str, Any]) -> list[str]:
    """Every command that starts or stops Ray on a node."""
    return [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]


def groups(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The node types, head included."""
    found: dict[str, dict[str, Any]] = config["available_node_types"]
    return found


def test_rays_schema_and_loader_accept_the_file(config: dict[str, Any]) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    validate_config(prepare_config(config))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda c: c.update(idle_timeout_minuts=5), "idle_timeout_minuts"),
        (lambda c: c["available_node_types"]["cpu"].update(max_worker=3), "max_worker"),
        (lambda c: c["available_node_types"]["cpu"].update(min_workers="two"), "two"),
        (lambda c: c.update(head_node_type="heads"), "head_node_type"),
        (lambda c: c.update(max_workers=0) or c["available_node_types"]["cpu"].update(min_workers=1), "max_workers"),
    ],
    ids=["unknown key", "unknown key of a group", "wrong type", "no such head", "fewer workers than wanted"],
)
def test_a_planted_mistake_is_caught(config: dict[str, Any], spoil: Any, told: str) -> None:
    spoil(config)
    with pytest.raises((ValueError, jsonschema.ValidationError), match=told):
        validate_config(prepare_config(config))


def test_nodes_get_the_projects_pins_and_nothing_else(config: dict[str, Any], pins: dict[str, str]) -> None:
    prepared = prepare_config(config)  # with Ray's defaults, which install packages of their own
    frozen_on = re.search(r"frozen on \*\*Python ([0-9.]+)", (REPOSITORY / "CONTRIBUTING.md").read_text())
    assert frozen_on is not None
    for commands in (prepared["head_setup_commands"], prepared["worker_setup_commands"]):
        installs = [command for command in commands if "pip install" in command]
        assert [command for command in installs if "-c $HOME/raytraffic/constraints.txt" not in command and "uv==" not in command] == []
        assert any("-e $HOME/raytraffic " in command and "boto3" in command for command in installs)
        assert any(f"--python {frozen_on.group(1)} " in command for command in commands)
        assert any(f'grep -F "version {pins["ray"]}"' in command for command in commands)
    assert "boto3" in pins
    assert config["file_mounts"]["/home/ubuntu/raytraffic"] == "."


def test_no_command_starts_ray_without_the_token(config: dict[str, Any]) -> None:
    commands = start_commands(config)
    starts = [command for command in commands if "ray start" in command]
    assert len(starts) == 2
    assert [command for command in commands if not command.startswith("export RAY_AUTH_MODE=token")] == []
    assert [command for command in starts if "RAY_AUTH_TOKEN_PATH=$HOME/.ray/auth_token " not in command] == []
    assert "disabled" not in " ".join(commands)


def test_the_token_comes_from_the_operators_file(config: dict[str, Any]) -> None:
    assert config["file_mounts"]["/home/ubuntu/.ray/auth_token"].startswith("~/")  # outside the repository
    assert any("chmod 600 $HOME/.ray/auth_token" in command for command in config["setup_commands"])
    text = (REPOSITORY / "cluster.yaml").read_text()
    assert "RAY_AUTH_TOKEN=" not in text
    assert re.search(r"[0-9a-f]{32}|AKIA|aws_secret|AWS_SECRET", text) is None


def test_the_dashboard_is_not_public(config: dict[str, Any]) -> None:
    (head,) = [command for command in config["head_start_ray_commands"] if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in head.split()
    assert "0.0.0.0" not in " ".join(start_commands(config))


def test_the_head_takes_no_work_and_is_no_spot_machine(config: dict[str, Any]) -> None:
    head = groups(config)[config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]


def test_every_node_is_closed_and_reaches_s3_by_its_profile(config: dict[str, Any]) -> None:
    for name, group in groups(config).items():
        node = group["node_config"]
        assert node["IamInstanceProfile"] == {"Name": "raytraffic-head" if name == "head" else "raytraffic-worker"}, name
        assert node["MetadataOptions"] == {"HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": 1}, name
        assert node["SecurityGroupIds"], name  # else Ray makes a group that opens port 22 to the internet
        assert all(volume["Ebs"]["Encrypted"] is True for volume in node["BlockDeviceMappings"]), name
    assert "security_group" not in config["provider"]


def test_groups_scale_to_nothing_and_only_inference_is_spot(config: dict[str, Any]) -> None:
    workers = {name: group for name, group in groups(config).items() if name != config["head_node_type"]}
    assert set(workers) == {"cpu", *GPU_GROUPS}
    assert [group["min_workers"] for group in workers.values()] == [0, 0, 0]
    spot = [name for name, group in workers.items() if group["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"]
    assert spot == ["gpu_inference"]
    assert sum(group["max_workers"] for group in workers.values()) <= config["max_workers"]
    assert config["provider"]["cache_stopped_nodes"] is False
    assert len(config["provider"]["availability_zone"].split(",")) >= 2
    assert config["idle_timeout_minutes"] > 0
    assert len({group["node_config"]["ImageId"] for group in groups(config).values()}) == 1


@pytest.mark.parametrize(
    ("demand", "group"),
    [
        ([{"CPU": 1}] * 20, "cpu"),
        ([{"CPU": 1, "GPU": 1}] * 4, "gpu_inference"),
        ([{"CPU": 1, "GPU": 1}] * 8, "gpu_inference"),
        ([{"CPU": 1, "GPU": 0.45}, {"CPU": 1, "GPU": 0.45}, {"CPU": 1, "GPU": 0.1}], "gpu_inference"),
        ([{"CPU": 12, "GPU": 1}] * 4, "gpu_training"),
    ],
    ids=["preparation", "forecast of four actors", "forecast of eight actors", "stages of the service", "training of four workers"],
)
def test_what_a_job_asks_for_decides_its_group(config: dict[str, Any], demand: list[Any], group: str) -> None:
    scorer = functools.partial(_default_utilization_scorer, node_availability_summary=NodeAvailabilitySummary({}))
    chosen, left = get_nodes_for(prepare_config(config)["available_node_types"], {}, "head", config["max_workers"], demand, scorer)
    assert set(chosen) == {group}
    assert left == []


def test_what_is_large_or_local_is_not_copied(config: dict[str, Any]) -> None:
    assert {"**/.venv", "**/.git", "**/runs"} <= set(config["rsync_exclude"])
    assert config["rsync_filter"] == [".gitignore"]


def commands_of(page: str) -> list[list[str]]:
    """The words of every `raytraffic <verb> ...` in the fenced shell examples of a page, from the verb on."""
    blocks = re.findall(r"```bash\n(.*?)```", (REPOSITORY / "docs" / page).read_text(), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [re.search(r"(?:^| -- +)raytraffic ([a-z].*)$", line) for line in lines]
    return [shlex.split(match.group(1)) for match in found if match]


def test_the_command_line_accepts_every_command_of_the_operations_page() -> None:
    commands = commands_of("operations.md")
    assert {"prepare", "train", "calibrate", "evaluate", "forecast"} == {verb for verb, *_ in commands}
    for verb, *arguments in commands:
        tyro.cli(VERBS[verb].config, args=arguments)


def test_the_training_command_of_the_operations_page_gets_the_on_demand_group(config: dict[str, Any]) -> None:
    (training,) = [arguments for verb, *arguments in commands_of("operations.md") if verb == "train"]
    asked = tyro.cli(VERBS["train"].config, args=training)
    assert config["available_node_types"]["gpu_inference"]["resources"]["CPU"] < asked.cpus_per_worker
    assert asked.cpus_per_worker <= config["available_node_types"]["gpu_training"]["resources"]["CPU"]
    assert asked.workers <= config["available_node_types"]["gpu_training"]["max_workers"]
    assert asked.batch % asked.workers == 0
