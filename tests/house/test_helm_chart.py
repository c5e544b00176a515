"""The Helm chart, rendered by Helm's own library and held against Kubernetes' schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

import softmux
from softmux.settings import Settings

CHART = Path(__file__).parents[2] / "deploy/helm/softmux"
KUBERNETES = ("1.29", "1.37")
CUSTOM = {"ServiceMonitor", "InferencePool"}
"""Kinds that extensions define: Kubernetes itself has no schema of them."""

LEAST: dict[str, Any] = {"model": "acme/model", "adminKey": {"value": "secret"}}
SHARED: dict[str, Any] = LEAST | {"blobs": {"url": "s3://bucket/softmux"}}
RELEASES: dict[str, dict[str, Any]] = {
    "least": LEAST,
    "several": SHARED | {"replicas": 3},
    "everything": {
        "image": {"repository": "registry.example/softmux", "tag": "cuda"},
        "imagePullSecrets": [{"name": "registry"}],
        "model": "/models/base",
        "gpus": 1,
        "runtimeClassName": "nvidia",
        "settings": {"kv_tokens": 2_000_000, "log_level": "warning", "group_by_adapter": False},
        "adminKey": {"existingSecret": "keys", "key": "admin"},
        "redis": {"existingSecret": "redis", "key": "url"},
        "blobs": {
            "url": "s3://bucket/softmux",
            "existingSecret": "s3",
            "env": [{"name": "AWS_REGION", "value": "eu-central-1"}],
        },
        "autoscaling": {"enabled": True, "minReplicas": 2, "maxReplicas": 12, "targetSeconds": "500m"},
        "ingress": {"enabled": True, "className": "nginx", "host": "softmux.example", "tlsSecret": "tls"},
        "networkPolicy": {"from": [{"namespaceSelector": {"matchLabels": {"name": "apps"}}}]},
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "inferencePool": {"enabled": True, "endpointPicker": "picker"},
        "nodeSelector": {"gpu": "h200"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "extraVolumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}}],
        "extraVolumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
    },
}


@pytest.fixture(scope="module")
def chart() -> Iterator[helm_python.Chart]:
    with helm_python.Chart.load(CHART) as loaded:
        yield loaded


def rendered(chart: helm_python.Chart, values: dict[str, Any]) -> list[dict[str, Any]]:
    chart.validate_schema(chart.merge_values(values))
    texts = chart.render(values, name="demo", namespace="serving")
    parts = [yaml.safe_load_all(text) for name, text in texts.items() if name.endswith(".yaml")]
    return [document for documents in parts for document in documents if document]


def one(documents: list[dict[str, Any]], kind: str, name: str = "demo-softmux") -> dict[str, Any]:
    (found,) = [each for each in documents if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def container(documents: list[dict[str, Any]]) -> dict[str, Any]:
    (only,) = one(documents, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(only)


@pytest.mark.parametrize("release", RELEASES)
def test_helm_has_no_finding(release: str) -> None:
    found = helm_python.lint(CHART, RELEASES[release], strict=True)
    assert found["errors"] == []
    assert [message for message in found["messages"] if message["severity"] > 1] == []


@pytest.mark.parametrize("release", RELEASES)
def test_what_it_renders_is_what_kubernetes_takes(chart: helm_python.Chart, release: str) -> None:
    documents = rendered(chart, RELEASES[release])
    assert len({(each["kind"], each["metadata"]["name"]) for each in documents}) == len(documents) > 5
    for document in documents:
        if document["kind"] not in CUSTOM:
            for version in KUBERNETES if release == "everything" else KUBERNETES[-1:]:
                kubernetes_validate.validate(document, version, strict=True)


def test_the_chart_is_of_this_version(chart: helm_python.Chart) -> None:
    assert chart.metadata["appVersion"] == softmux.__version__
    assert container(rendered(chart, LEAST))["image"] == f"softmux:{softmux.__version__}"


@pytest.mark.parametrize("release", RELEASES)
def test_variables_of_the_server_are_settings(chart: helm_python.Chart, release: str) -> None:
    named = [each["name"] for each in container(rendered(chart, RELEASES[release]))["env"]]
    assert len(named) == len(set(named))
    known = {f"SOFTMUX_{name.upper()}" for name in Settings.model_fields}
    assert {name for name in named if name.startswith("SOFTMUX_")} <= known


def test_settings_come_as_the_server_reads_them(chart: helm_python.Chart, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in container(rendered(chart, RELEASES["everything"]))["env"]:
        if "value" in each:
            monkeypatch.setenv(each["name"], each["value"])
    settings = Settings()
    assert (settings.kv_tokens, settings.log_level, settings.group_by_adapter) == (2_000_000, "warning", False)
    assert (settings.blobs, settings.drain_seconds) == ("s3://bucket/softmux", 120)


@pytest.mark.parametrize("release", RELEASES)
def test_a_pod_has_time_to_drain_and_rights_to_nothing(chart: helm_python.Chart, release: str) -> None:
    documents = rendered(chart, RELEASES[release])
    pod, server = one(documents, "Deployment")["spec"]["template"]["spec"], container(documents)
    drain = next(int(each["value"]) for each in server["env"] if each["name"] == "SOFTMUX_DRAIN_SECONDS")
    pause = int(server["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= drain + pause + 10
    startup = server["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 1800
    assert (server["readinessProbe"]["httpGet"]["path"], server["livenessProbe"]["httpGet"]["path"]) == (
        "/health/ready",
        "/health/live",
    )
    for each in documents:
        template = each.get("spec", {}).get("template")
        if template is None:
            continue
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        assert template["spec"]["automountServiceAccountToken"] is False
        assert template["spec"]["enableServiceLinks"] is False  # SOFTMUX_PORT would be tcp://…, of a Service's name
        for box in template["spec"]["containers"]:
            assert box["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@pytest.mark.parametrize("release", RELEASES)
def test_selectors_find_their_pods_and_no_others(chart: helm_python.Chart, release: str) -> None:
    documents = rendered(chart, RELEASES[release])
    pods = {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"]
        for each in documents
        if each["kind"] in ("Deployment", "StatefulSet")
    }
    for each in documents:
        spec = each.get("spec", {})
        if each["kind"] == "Service":
            wanted = spec["selector"]
        elif each["kind"] in ("NetworkPolicy", "PodDisruptionBudget", "Deployment", "StatefulSet", "InferencePool"):
            wanted = (spec.get("podSelector") or spec["selector"])["matchLabels"]
        else:
            continue
        assert [name for name, labels in pods.items() if wanted.items() <= labels.items()] == [each["metadata"]["name"]]


def test_only_the_server_reaches_redis(chart: helm_python.Chart) -> None:
    documents = rendered(chart, LEAST)
    (rule,) = one(documents, "NetworkPolicy", "demo-softmux-redis")["spec"]["ingress"]
    labels = one(documents, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert rule["from"][0]["podSelector"]["matchLabels"].items() <= labels.items()
    (url,) = [each["value"] for each in container(documents)["env"] if each["name"] == "SOFTMUX_REDIS"]
    assert url == "redis://demo-softmux-redis:6379/0"
    assert one(documents, "Service", "demo-softmux-redis")["spec"]["ports"][0]["port"] == 6379
    command = one(documents, "StatefulSet", "demo-softmux-redis")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert command[command.index("--appendfsync") + 1] == "always"


def test_secrets_that_are_there_already_are_used_and_none_is_made(chart: helm_python.Chart) -> None:
    documents = rendered(chart, RELEASES["everything"])
    assert not [each for each in documents if each["kind"] in ("Secret", "StatefulSet", "PersistentVolumeClaim")]
    given = {each["name"]: each.get("valueFrom") for each in container(documents)["env"]}
    assert given["SOFTMUX_ADMIN_KEY"] == {"secretKeyRef": {"name": "keys", "key": "admin"}}
    assert given["SOFTMUX_REDIS"] == {"secretKeyRef": {"name": "redis", "key": "url"}}
    assert container(documents)["envFrom"] == [{"secretRef": {"name": "s3"}}]
    monitor = one(documents, "ServiceMonitor")["spec"]["endpoints"][0]
    assert monitor["authorization"]["credentials"] == {"name": "keys", "key": "admin"}


def test_replicas_are_scaled_by_the_wait_or_by_hand(chart: helm_python.Chart) -> None:
    by_hand, by_wait = rendered(chart, RELEASES["several"]), rendered(chart, RELEASES["everything"])
    assert one(by_hand, "Deployment")["spec"]["replicas"] == 3
    assert one(by_hand, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert "replicas" not in one(by_wait, "Deployment")["spec"]
    (metric,) = one(by_wait, "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"] == {
        "metric": {"name": "softmux_queue_seconds"},
        "target": {"type": "AverageValue", "averageValue": "500m"},
    }
    assert not [each for each in rendered(chart, LEAST) if each["kind"] == "PodDisruptionBudget"]


def test_one_replica_without_a_blob_store_keeps_its_data_and_is_alone_with_it(chart: helm_python.Chart) -> None:
    documents = rendered(chart, LEAST)
    assert one(documents, "Deployment")["spec"]["strategy"] == {"type": "Recreate"}
    claim = one(documents, "PersistentVolumeClaim", "demo-softmux-data")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    volumes = one(documents, "Deployment")["spec"]["template"]["spec"]["volumes"]
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "demo-softmux-data"}} in volumes


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"adminKey": {"value": "x"}}, "model: name the base model"),
        ({"model": "m"}, "adminKey: name an existingSecret"),
        (LEAST | {"replicas": 2}, "blobs.url: more than one replica"),
        (LEAST | {"autoscaling": {"enabled": True}}, "blobs.url: more than one replica"),
        (LEAST | {"redis": {"url": "redis://r", "existingSecret": "s"}}, "redis: give either"),
        (LEAST | {"inferencePool": {"enabled": True}}, "inferencePool.endpointPicker: name"),
        (LEAST | {"ingress": {"enabled": True}}, "ingress.host: name the host"),
    ],
)
def test_what_would_not_work_is_refused_in_words(chart: helm_python.Chart, values: dict[str, Any], words: str) -> None:
    with pytest.raises(helm_python.HelmRenderError, match=words):
        chart.render(values, name="demo")


@pytest.mark.parametrize(
    "wrong",
    [
        {"replica": 2},
        {"replicas": 0},
        {"blobs": {"url": "/data/blobs"}},
        {"settings": {"redis": "redis://elsewhere"}},
        {"settings": {"kv-tokens": 1}},
        {"gpus": -1},
        {"drainSeconds": "120"},
    ],
)
def test_values_of_another_shape_are_refused(chart: helm_python.Chart, wrong: dict[str, Any]) -> None:
    with pytest.raises(helm_python.HelmValuesError):
        chart.validate_schema(chart.merge_values(LEAST | wrong))


def test_every_value_has_a_schema(chart: helm_python.Chart) -> None:
    def named(values: dict[str, Any], schema: dict[str, Any], path: str) -> None:
        for name, value in values.items():
            assert name in schema["properties"], f"{path}{name}"
            if isinstance(value, dict) and schema["properties"][name].get("properties"):
                named(value, schema["properties"][name], f"{path}{name}.")

    named(chart.values, json.loads((CHART / "values.schema.json").read_text(encoding="utf-8")), "")
