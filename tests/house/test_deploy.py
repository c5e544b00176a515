"""The container image and what stands around it, as far as they can be checked without a container engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from softmux.settings import Settings

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVER: dict[str, Any] = COMPOSE["services"]["server"]


def _run(*command: str) -> None:
    done = subprocess.run([str(BIN / command[0]), *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dockerfile_has_no_finding() -> None:
    _run("hadolint", "Dockerfile")


def test_the_compose_files_fit_the_compose_specification() -> None:
    files = ("docker-compose.yml", "deploy/compose.cuda.yml")
    _run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *files)


def test_the_shell_scripts_have_no_finding() -> None:
    _run("shellcheck", ".ci/run")


def test_variables_of_the_server_are_settings() -> None:
    known = {f"SOFTMUX_{name.upper()}" for name in Settings.model_fields} | {"SOFTMUX_CACHE"}
    assert set(SERVER["environment"]) <= known
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").split()
    assert {word.partition("=")[0] for word in lines if word.startswith("SOFTMUX_") and "=" in word} <= known


def test_a_container_listens_beyond_loopback_only_with_a_key() -> None:
    assert "SOFTMUX_HOST=0.0.0.0" in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert SERVER["environment"]["SOFTMUX_ADMIN_KEY_FILE"] == "/run/secrets/admin_key"
    assert "admin_key" in SERVER["secrets"]
    assert COMPOSE["secrets"]["admin_key"] == {"environment": "SOFTMUX_ADMIN_KEY"}


def test_prometheus_asks_the_server_with_the_key_it_is_given() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    assert job["authorization"]["credentials_file"] == "/run/secrets/admin_key"
    assert "admin_key" in COMPOSE["services"]["prometheus"]["secrets"]
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
