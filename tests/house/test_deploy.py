"""The container image and what stands around it, as far as they can be checked without a container engine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from softmux.settings import Settings
from softmux.telemetry.metrics import METRICS, PREFIX

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
SERVER: dict[str, Any] = COMPOSE["services"]["server"]


def _run(*command: str) -> None:
    done = subprocess.run([str(BIN / command[0]), *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dockerfile_has_no_finding() -> None:
    _run("hadolint", "Dockerfile")


def test_the_compose_files_fit_the_compose_specification() -> None:
    files = ("docker-compose.yml", "deploy/compose.cuda.yml")
    _run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *files)


def _composed(*files: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What Compose itself makes of them, which needs no container engine."""
    named = [word for file in files for word in ("--file", file)]
    command = [str(BIN / "docker-compose"), *named, "config", "--format", "json"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_compose_reads_its_files(device: str) -> None:
    files = ["docker-compose.yml", *(["deploy/compose.cuda.yml"] if device == "cuda" else [])]
    done = _composed(*files, SOFTMUX_ADMIN_KEY="key", GRAFANA_PASSWORD="password")
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    server = services["server"]
    assert (server["image"], server["build"]["args"]["DEVICE"]) == (f"softmux:{device}", device)
    reserved = server.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    assert [each["capabilities"] for each in reserved] == ([["gpu"]] if device == "cuda" else [])
    assert services["prometheus"]["secrets"][0]["source"] == "admin_key"
    for name, service in services.items():
        assert name == "server" or "healthcheck" in service, f"the server's is its image's, {name} has none"


@pytest.mark.parametrize("missing", ["SOFTMUX_ADMIN_KEY", "GRAFANA_PASSWORD"])
def test_compose_says_which_variable_is_missing(missing: str) -> None:
    given = {"SOFTMUX_ADMIN_KEY": "key", "GRAFANA_PASSWORD": "password"}
    done = _composed("docker-compose.yml", **{name: value for name, value in given.items() if name != missing})
    assert done.returncode != 0
    assert f"set {missing} to" in done.stderr


def test_the_shell_scripts_have_no_finding() -> None:
    _run("shellcheck", ".ci/run")


def test_variables_of_the_server_are_settings() -> None:
    known = {f"SOFTMUX_{name.upper()}" for name in Settings.model_fields} | {"SOFTMUX_CACHE"}
    assert set(SERVER["environment"]) <= known
    assert {
        word.partition("=")[0] for word in DOCKERFILE.split() if word.startswith("SOFTMUX_") and "=" in word
    } <= known


def test_a_container_listens_beyond_loopback_only_with_a_key() -> None:
    assert "SOFTMUX_HOST=0.0.0.0" in DOCKERFILE
    assert SERVER["environment"]["SOFTMUX_ADMIN_KEY"].startswith("${SOFTMUX_ADMIN_KEY:?")  # compose stops without it


@pytest.mark.parametrize("model", ["", "acme/model"])
def test_the_server_starts_with_the_demo_unless_told_another_model(model: str, tmp_path: Path) -> None:
    """Runs the service's own shell line, with programs in place of python and softmux that say what they are given."""
    for name, line in {
        "python": "echo /made/demo",
        "softmux": 'echo "$@: $SOFTMUX_MODEL ${SOFTMUX_ADAPTERS-none}"',
    }.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        program.chmod(0o755)
    (script,) = SERVER["command"]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SOFTMUX_MODEL": model}
    command = [*SERVER["entrypoint"], script.replace("$$", "$")]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert said == ("serve: acme/model none\n" if model else "serve: /made/demo /srv/adapters\n")
    assert "COPY adapters /srv/adapters" in DOCKERFILE


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_believes_the_server(status: int, code: int) -> None:
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    check = re.search(r"^ +CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert check is not None
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        program, *arguments = json.loads(check[1])
        assert program == "python"
        environment = {"SOFTMUX_PORT": str(server.server_port)}
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=False)
        thread.join()
    assert (done.returncode, asked) == (code, ["/health/ready"])


@pytest.mark.parametrize("service", sorted(COMPOSE["services"]))
def test_a_service_has_no_rights_it_does_not_need(service: str) -> None:
    described = COMPOSE["services"][service]
    assert described["cap_drop"] == ["ALL"]
    assert described["security_opt"] == ["no-new-privileges:true"]
    assert not described.get("privileged")
    assert "cap_add" not in described
    if "secrets" not in described:  # see below
        assert described["read_only"] is True
        assert described["tmpfs"] == ["/tmp"]


def test_the_image_runs_as_nobody_in_particular_and_writes_to_its_volumes_alone() -> None:
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (\S+)$", final, re.MULTILINE) == ["10001"]
    volumes = json.loads(re.findall(r"^VOLUME (\[.*\])$", final, re.MULTILINE)[0])
    named = dict(re.findall(r"(\w+)=(/\S+)", final.partition("ENV PATH")[2].partition("USER")[0]))
    for name in ("SOFTMUX_DATA", "SOFTMUX_CACHE", "HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        assert any(named[name] == volume or named[name].startswith(volume + "/") for volume in volumes), name


def test_no_read_only_service_takes_a_secret_from_the_environment() -> None:
    """Compose copies such a secret into the container's file system, and cannot where that is read-only."""
    for service in COMPOSE["services"].values():
        assert not (service.get("read_only") and service.get("secrets"))


def test_prometheus_asks_the_server_with_the_key_it_is_given() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    assert job["authorization"]["credentials_file"] == "/run/secrets/admin_key"
    assert "admin_key" in COMPOSE["services"]["prometheus"]["secrets"]
    assert COMPOSE["secrets"]["admin_key"] == {"environment": "SOFTMUX_ADMIN_KEY"}
    assert job["static_configs"] == [{"targets": ["server:8000"]}]


def test_redis_keeps_what_was_acknowledged() -> None:
    command = COMPOSE["services"]["redis"]["command"]
    assert command[command.index("--appendonly") + 1] == "yes"
    assert command[command.index("--appendfsync") + 1] == "always"
    assert any(mount.endswith(":/data") for mount in COMPOSE["services"]["redis"]["volumes"])


@pytest.mark.parametrize("service", sorted(COMPOSE["services"]))
def test_what_a_service_mounts_exists_and_ports_are_this_hosts_alone(service: str) -> None:
    described = COMPOSE["services"][service]
    for mount in described.get("volumes", []):
        source = mount.split(":")[0]
        assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
    for port in described.get("ports", []):
        assert port.startswith(("127.0.0.1:", "${SOFTMUX_PUBLISH:-127.0.0.1:8000}"))


def test_grafana_finds_its_datasource() -> None:
    folder = ROOT / "deploy/grafana/provisioning/datasources"
    (source,) = yaml.safe_load((folder / "prometheus.yml").read_text(encoding="utf-8"))["datasources"]
    assert source["type"] == "prometheus"
    host = source["url"].removeprefix("http://").partition(":")[0]
    assert host in COMPOSE["services"]


def test_the_operations_page_tells_of_the_alerts_there_are_and_of_declared_metrics() -> None:
    groups = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8"))["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(Softmux\w+)`", page)) == alerts
    assert set(re.findall(r"`(softmux_\w+)`", page)) <= {PREFIX + metric.name for metric in METRICS}


def test_a_gateway_is_told_of_metrics_that_there_are() -> None:
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    block = page.partition("## Behind a Kubernetes gateway")[2].partition("```yaml")[2].partition("```")[0]
    parameters = yaml.safe_load(block)["parameters"]
    (config,) = parameters["engineConfigs"]
    assert config.pop("name") == parameters["defaultEngine"]
    metrics = {PREFIX + metric.name: metric for metric in METRICS}
    assert all(metrics[name].kind == "gauge" for name in config.values())
    assert set(metrics[config["loraSpec"]].labels) == {"max_lora", "running_lora_adapters", "waiting_lora_adapters"}


def test_the_page_on_deploying_scales_on_metrics_that_there_are() -> None:
    page = (ROOT / "deploy/README.md").read_text(encoding="utf-8")
    (rule,) = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])["rules"]
    named = set(re.findall(r"softmux_\w+", rule["seriesQuery"] + rule["metricsQuery"]))
    assert named == {"softmux_queue_cost", "softmux_queue_cost_per_second"}
    assert named <= {PREFIX + metric.name for metric in METRICS}
    values = yaml.safe_load((ROOT / "deploy/helm/softmux/values.yaml").read_text(encoding="utf-8"))
    assert values["autoscaling"]["metric"] == rule["name"]["as"]
    for name in re.findall(r"--set ([\w.]+)=", page):
        place: Any = values
        for part in name.split("."):
            place = place[part]
