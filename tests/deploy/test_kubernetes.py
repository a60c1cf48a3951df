"""deploy/kubernetes and deploy/Containerfile: fields that KubeRay knows, the project's pins, closed ports, commands that parse.

What passes here was not applied to a cluster. The fields below are the part of KubeRay's CRDs (ray.io/v1, KubeRay 1.7) and of Kubernetes
that these files use: a misspelt field, which an API server may drop without a word, is not among them.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml  # type: ignore[import-untyped]
from ray.serve.schema import ServeDeploySchema

from raytraffic.cli import VERBS
from raytraffic.config import ForecastConfig
from raytraffic.serving.access import TOKEN_FILE

REPOSITORY = Path(__file__).resolve().parent.parent.parent
FOLDER = REPOSITORY / "deploy" / "kubernetes"

META = {"name", "namespace", "labels", "annotations"}
CLUSTER = {"rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"}
FIELDS: dict[str, set[str]] = {  # kind or part -> the fields it may have
    "RayCluster": CLUSTER,
    "RayJob": {
        *("entrypoint", "submissionMode", "backoffLimit", "activeDeadlineSeconds", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
        *("submitterPodTemplate", "rayClusterSpec"),
    },
    "RayService": {"serveConfigV2", "rayClusterConfig", "upgradeStrategy", "excludeHeadPodFromServeSvc"},
    "autoscalerOptions": {"idleTimeoutSeconds", "resources", "securityContext"},
    "headGroupSpec": {"rayStartParams", "template"},
    "workerGroupSpecs": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
    "template": {"metadata", "spec"},
    "pod": {
        *("serviceAccountName", "automountServiceAccountToken", "securityContext", "containers", "volumes", "nodeSelector", "tolerations"),
        "restartPolicy",
    },
    "container": {
        *("name", "image", "command", "env", "ports", "resources", "securityContext", "readinessProbe", "volumeMounts"),
    },
    "CronJob": {
        *("schedule", "timeZone", "concurrencyPolicy", "startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"),
        "jobTemplate",
    },
    "NetworkPolicy": {"podSelector", "policyTypes", "ingress"},
}
RAY_PORTS = {6379, 8265, 10001, 52365}


@cache
def parsed() -> list[dict[str, Any]]:
    """The objects of the folder, read once."""
    text = "\n---\n".join(path.read_text() for path in sorted(FOLDER.glob("*.yaml")) if path.name != "kustomization.yaml")
    return [each for each in yaml.safe_load_all(text.replace("@DATE@", "2026-03-02")) if each]


def documents() -> list[dict[str, Any]]:
    """Every object of the folder, the nightly RayJob with a date in it; a test may spoil its copy."""
    return copy.deepcopy(parsed())


def of_kind(kind: str) -> list[dict[str, Any]]:
    """The objects of one kind."""
    return [each for each in documents() if each["kind"] == kind]


def clusters() -> dict[str, dict[str, Any]]:
    """Kind -> the specification of the Ray cluster in it."""
    return {
        "RayCluster": of_kind("RayCluster")[0]["spec"],
        "RayJob": of_kind("RayJob")[0]["spec"]["rayClusterSpec"],
        "RayService": of_kind("RayService")[0]["spec"]["rayClusterConfig"],
    }


def templates() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every template of a pod, by a name that says where it stands."""
    for kind, spec in clusters().items():
        yield f"{kind} head", spec["headGroupSpec"]["template"]
        for group in spec["workerGroupSpecs"]:
            yield f"{kind} {group['groupName']}", group["template"]
    yield "RayJob submitter", of_kind("RayJob")[0]["spec"]["submitterPodTemplate"]
    yield "CronJob", of_kind("CronJob")[0]["spec"]["jobTemplate"]["spec"]["template"]


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every container, by the name of its pod."""
    for where, template in templates():
        for container in template["spec"]["containers"]:
            yield where, container


@pytest.fixture
def pins() -> dict[str, str]:
    """Package name -> pinned version."""
    return dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().splitlines())


def unknown_fields(kind: str, spec: dict[str, Any]) -> set[str]:
    """Fields of a Ray object, or of a part of one, that are not in the table above."""
    found = {f"{kind}.{name}" for name in set(spec) - FIELDS[kind]}
    for name in ("rayClusterSpec", "rayClusterConfig"):
        if name in spec:
            found |= unknown_fields("RayCluster", spec[name])
    for name in ("autoscalerOptions", "headGroupSpec"):
        if name in spec:
            found |= unknown_fields(name, spec[name])
    for group in spec.get("workerGroupSpecs", ()):
        found |= unknown_fields("workerGroupSpecs", group)
    for name in ("template", "submitterPodTemplate"):
        if name in spec:
            found |= unknown_fields("template", spec[name])
            found |= {f"pod.{field}" for field in set(spec[name]["spec"]) - FIELDS["pod"]}
            for container in spec[name]["spec"]["containers"]:
                found |= {f"container.{field}" for field in set(container) - FIELDS["container"]}
    return found


def test_the_folder_holds_what_kustomize_applies() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    named = {*kustomization["resources"], *(file for made in kustomization["configMapGenerator"] for file in made["files"])}
    assert named == {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert kustomization["namespace"] == "raytraffic"


def test_no_two_ray_objects_make_services_of_one_name() -> None:
    names = [each["metadata"]["name"] for each in documents() if each["kind"].startswith("Ray")]
    assert len(names) == len(set(names)) == 3


def test_every_field_is_one_that_kuberay_knows() -> None:
    assert {each["kind"] for each in documents()} >= {"RayCluster", "RayJob", "RayService", "CronJob", "NetworkPolicy", "ServiceAccount"}
    for each in documents():
        assert set(each["metadata"]) <= META, each["kind"]
        if each["kind"].startswith("Ray"):
            assert each["apiVersion"] == "ray.io/v1"
            assert unknown_fields(each["kind"], each["spec"]) == set()
        elif each["kind"] in FIELDS:
            assert set(each["spec"]) <= FIELDS[each["kind"]], each["kind"]


def test_a_planted_mistake_is_caught() -> None:
    spec = clusters()["RayCluster"]
    spec["workerGroupSpecs"][0]["maxReplica"] = 3
    spec["headGroupSpec"]["template"]["spec"]["containers"][0]["resource"] = {}
    spec["authOption"] = {"mode": "token"}
    assert unknown_fields("RayCluster", spec) == {"workerGroupSpecs.maxReplica", "container.resource", "RayCluster.authOption"}


def test_clusters_have_the_pinned_ray_and_ask_for_the_token(pins: dict[str, str]) -> None:
    for kind, spec in clusters().items():
        assert spec["rayVersion"] == pins["ray"], kind
        assert spec["authOptions"] == {"mode": "token"}, kind
        assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}, kind  # KubeRay wants texts
        assert all(isinstance(group["rayStartParams"], dict) for group in spec["workerGroupSpecs"]), kind
        assert all(group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] for group in spec["workerGroupSpecs"]), kind


def test_images_are_the_operators_and_carry_the_projects_version() -> None:
    version = re.search(r'^version = "(.+)"$', (REPOSITORY / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert version is not None
    images = {(where == "CronJob", container["image"]) for where, container in containers()}
    assert images == {(False, f"raytraffic:{version.group(1)}"), (True, "kubectl:1.34")}


def test_every_container_has_resources_and_no_privileges() -> None:
    for where, container in containers():
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]) & set(container["resources"]["limits"]), where
        if "Ray" in where and "submitter" not in where:  # Ray announces the limits; what it announces must be there
            assert container["resources"]["requests"] == container["resources"]["limits"], where
        assert container["securityContext"]["allowPrivilegeEscalation"] is False, where
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, where
    for where, template in templates():
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True, where
        assert template["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
    for spec in clusters().values():
        assert {"requests", "limits"} <= set(spec["autoscalerOptions"]["resources"])


def test_ray_pods_say_when_they_are_ready() -> None:
    for where, container in containers():
        if container["name"].startswith("ray-"):
            (*shell, checks) = container["readinessProbe"]["exec"]["command"]
            assert shell == ["bash", "-c"], where
            assert "api/local_raylet_healthz" in checks, where
            assert ("api/gcs_healthz" in checks) == where.endswith("head"), where
            assert (":8000/-/healthz" in checks) == (where.startswith("RayService") and not where.endswith("head")), where


def test_gpu_groups_ask_for_a_gpu_and_only_the_nightly_one_is_spot() -> None:
    spot = "eks.amazonaws.com/capacityType"
    for where, template in templates():
        (container,) = template["spec"]["containers"]
        gpus = {container["resources"][name].get("nvidia.com/gpu", 0) for name in ("requests", "limits")}
        assert gpus == {int("gpu" in where)}, where
        if "gpu" in where or "head" in where:
            assert template["spec"]["nodeSelector"][spot] == ("SPOT" if where == "RayJob gpu-inference" else "ON_DEMAND"), where
        if "gpu" in where:
            assert any(each["key"] == "nvidia.com/gpu" for each in template["spec"]["tolerations"]), where


def test_s3_is_reached_by_a_role_and_secrets_by_their_names() -> None:
    accounts = {each["metadata"]["name"]: each["metadata"].get("annotations", {}) for each in of_kind("ServiceAccount")}
    for where, template in templates():
        name = template["spec"].get("serviceAccountName")
        if where.startswith("Ray") and "submitter" not in where:
            assert "eks.amazonaws.com/role-arn" in accounts[name], where
        if "head" not in where and where != "CronJob":  # the head's autoscaler and the CronJob speak to the Kubernetes API
            assert template["spec"]["automountServiceAccountToken"] is False, where
    assert "eks.amazonaws.com/role-arn" not in accounts["raytraffic-schedule"]
    assert of_kind("Secret") == []
    text = "".join(path.read_text() for path in FOLDER.glob("*.yaml"))
    assert re.search(r"[0-9a-f]{32}|AKIA|SECRET_ACCESS_KEY|RAY_AUTH_TOKEN, value", text) is None


def test_the_schedule_may_create_ray_jobs_and_nothing_else() -> None:
    (role,) = of_kind("Role")
    (binding,) = of_kind("RoleBinding")
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["get", "create", "patch"]}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [each["name"] for each in binding["subjects"]] == ["raytraffic-schedule"]


def test_rays_ports_are_closed_to_all_but_their_own_cluster() -> None:
    policies = {
        each["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]: each["spec"] for each in of_kind("NetworkPolicy")
    }
    for where, template in templates():
        if where.startswith("Ray"):
            labels = template["metadata"]["labels"]
            component = {"RayCluster": "batch", "RayJob": "nightly", "RayService": "service"}[where.split()[0]]
            assert labels == {"app.kubernetes.io/part-of": "raytraffic", "app.kubernetes.io/component": component}, where
    assert set(policies) == {"batch", "nightly", "service"}
    for component, policy in policies.items():
        assert policy["policyTypes"] == ["Ingress"]
        own, *others = policy["ingress"]
        assert own == {"from": [{"podSelector": policy["podSelector"]}]}, component
        for rule in others:
            ports = {port["port"] for port in rule["ports"]}
            (peer,) = rule["from"]
            operator = peer.get("podSelector") == {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}
            assert operator or not ports & RAY_PORTS, component
            assert "namespaceSelector" in peer, component
    open_to_clients = [rule for rule in policies["service"]["ingress"] if "raytraffic/client" in json.dumps(rule)]
    assert [rule["ports"] for rule in open_to_clients] == [[{"protocol": "TCP", "port": 8000}]]


def test_the_service_is_the_serve_configuration_of_the_repository() -> None:
    served = yaml.safe_load(of_kind("RayService")[0]["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(served)
    written = yaml.safe_load((REPOSITORY / "serve_configs" / "uomo-gpu.yaml").read_text())
    assert served["http_options"].pop("host") == "0.0.0.0"
    assert written["http_options"].pop("host") == "127.0.0.1"
    checkpoints = served["applications"][0]["args"].pop("checkpoints")
    assert list(checkpoints) == list(written["applications"][0]["args"].pop("checkpoints"))
    assert all(folder.startswith("s3://BUCKET/") for folder in checkpoints.values())
    assert served == written


def test_every_pod_of_the_service_has_the_serving_token() -> None:
    for where, template in templates():
        if not where.startswith("RayService"):
            continue
        (container,) = template["spec"]["containers"]
        environment = {each["name"]: each["value"] for each in container["env"]}
        (mount,) = container["volumeMounts"]
        (volume,) = template["spec"]["volumes"]
        assert volume["secret"]["secretName"] == "raytraffic-serve-token", where
        assert mount["name"] == volume["name"], where
        assert environment[TOKEN_FILE] == f"{mount['mountPath']}/token", where


def nightly() -> list[str]:
    """The words of the nightly command."""
    return shlex.split(of_kind("RayJob")[0]["spec"]["entrypoint"])


def test_the_nightly_command_is_one_that_the_command_line_accepts() -> None:
    program, verb, *arguments = nightly()
    assert (program, verb) == ("raytraffic", "forecast")
    config = tyro.cli(VERBS[verb].config, args=arguments)
    assert isinstance(config, ForecastConfig)
    assert (config.store is None) != (config.table is None)
    assert config.out == "s3://BUCKET/forecasts/2026-03-02"
    assert config.gpu
    (group,) = clusters()["RayJob"]["workerGroupSpecs"]
    assert config.workers == group["maxReplicas"]
    assert not set(of_kind("RayJob")[0]["spec"]["entrypoint"]) & set("&|;<>$`'\"*")  # it passes two shells


def test_a_night_is_one_job_with_an_end() -> None:
    (job,), (cron,) = of_kind("RayJob"), of_kind("CronJob")
    assert job["metadata"]["name"] == "forecast-2026-03-02"
    assert job["spec"]["activeDeadlineSeconds"] < 24 * 3600  # two nights never run at once
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    pod = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert {"name": "manifests", "configMap": {"name": "nightly-forecast"}} in pod["volumes"]


def test_the_cron_jobs_shell_writes_todays_job() -> None:
    cron = yaml.safe_load((FOLDER / "cronjob.yaml").read_text())  # documents() has a date in place of @DATE@
    shell, option, line = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["command"]
    applied = "kubectl apply -f -"
    assert (shell, option) == ("sh", "-c")
    assert line.endswith(applied)
    written = line.replace(applied, "cat").replace("/manifests", str(FOLDER))
    job = subprocess.run(["sh", "-c", written], capture_output=True, text=True, check=True).stdout
    assert "@DATE@" not in job
    night = yaml.safe_load(job)["metadata"]["name"].removeprefix("forecast-")
    assert abs((date.fromisoformat(night) - datetime.now(UTC).date()).days) <= 1  # midnight may pass meanwhile


def test_the_image_has_the_pins_a_user_of_its_own_and_what_the_probes_call(pins: dict[str, str]) -> None:
    text = (REPOSITORY / "deploy" / "Containerfile").read_text()
    instructions = re.findall(r"^([A-Z]+) ((?:.*\\\n)*.*)$", text, flags=re.MULTILINE)
    python = re.search(r"frozen on \*\*Python (\d+\.\d+)\.", (REPOSITORY / "CONTRIBUTING.md").read_text())
    assert python is not None
    assert [words for name, words in instructions if name == "FROM"] == [f"python:{python.group(1)}-slim"]
    installs = [words for name, words in instructions if name == "RUN" and "pip install" in words]
    assert len(installs) == 2
    assert all("-c constraints.txt" in words for words in installs)
    assert f'grep -F "version {pins["ray"]}"' in text
    assert [words for name, words in instructions if name == "USER"] == ["1000"]
    assert "wget" in text
    for name, words in instructions:
        if name == "COPY":
            assert all((REPOSITORY / source).exists() for source in words.split()[:-1]), words
    for _, template in templates():
        assert template["spec"]["securityContext"]["runAsUser"] == 1000


def test_every_file_says_that_it_was_not_launched() -> None:
    names = ("kustomization", "raycluster", "rayservice", "nightly-forecast", "cronjob")
    files = [REPOSITORY / "cluster.yaml", *(FOLDER / f"{name}.yaml" for name in names)]
    assert [path.name for path in files if "VALIDATED, NOT LAUNCHED" not in path.read_text()] == []
    assert "NOT BUILT" in (REPOSITORY / "deploy" / "Containerfile").read_text()
