"""Alert rules: each has its severity, its words, its runbook entry, and tests of when it fires and when not."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from softmux.dashboards.queries import declared
from softmux.dashboards.runbook import entries
from softmux.telemetry.metrics import PREFIX
from support.promql import asked

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
GROUPS: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
TESTS: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts.test.yml").read_text(encoding="utf-8"))["tests"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_asks_for_declared_metrics_and_labels(rule: dict[str, Any]) -> None:
    found = asked(rule["expr"])
    known = {"instance", "job", "le"}
    for name in found.metrics - RECORDED - {"up"}:
        assert name.startswith(PREFIX)
        known |= set(declared(name.removeprefix(PREFIX)).labels)
    assert found.labels <= known


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_what_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    said = entries()[rule["alert"]]
    severity = rule["labels"]["severity"]
    assert severity in ("page", "ticket")
    assert said.startswith(f"{severity.capitalize()}: "), "the runbook says how bad it is, too"
    assert rule["annotations"]["summary"]
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert (ROOT / page).is_file()
    assert anchor == rule["alert"].lower(), "the anchor of its heading"


def test_the_runbook_tells_of_no_other_alert() -> None:
    assert set(entries()) == {rule["alert"] for rule in ALERTS}


@pytest.mark.parametrize("alert", [rule["alert"] for rule in ALERTS])
def test_an_alert_is_tried_firing_and_not(alert: str) -> None:
    tried = [bool(one["exp_alerts"]) for test in TESTS for one in test["alert_rule_test"] if one["alertname"] == alert]
    assert sorted(tried) == [False, True]


def _promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.tools("promtool")
def test_the_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    done = _promtool("test", "rules", FOLDER / "alerts.test.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    rules = (FOLDER / "alerts.yml").read_text(encoding="utf-8").replace("worker_up == 0", "worker_up == 1")
    (tmp_path / "alerts.yml").write_text(rules, encoding="utf-8")
    tests = [test for test in TESTS if test["name"].startswith("SoftmuxWorkerDown")]
    (tmp_path / "alerts.test.yml").write_text(yaml.safe_dump({"rule_files": ["alerts.yml"], "tests": tests}), "utf-8")
    broken = _promtool("test", "rules", tmp_path / "alerts.test.yml")
    assert broken.returncode == 1, "it sees nothing"
    assert "SoftmuxWorkerDown fires" in broken.stdout + broken.stderr


@pytest.mark.tools("promtool")
def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    config = (FOLDER / "prometheus.yml").read_text(encoding="utf-8")
    (tmp_path / "key").write_text("k", encoding="utf-8")
    config = config.replace("/etc/prometheus/alerts.yml", str(FOLDER / "alerts.yml"))
    config = config.replace("/run/secrets/admin_key", str(tmp_path / "key"))
    (tmp_path / "prometheus.yml").write_text(config, encoding="utf-8")
    done = _promtool("check", "config", tmp_path / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"{len(RULES)} rules found", done.stdout)
