"""Grafana's dashboards: committed as they are made, of the declared metrics alone, and fit for Grafana to read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from softmux.dashboards.__main__ import main
from softmux.dashboards.boards import BOARDS, files
from softmux.dashboards.queries import declared, now, rate
from softmux.dashboards.runbook import anchors
from softmux.telemetry.metrics import PREFIX
from support.promql import asked

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "grafana" / "dashboards"
SCHEMA = ROOT / "tests" / "support" / "schemas" / "grafana-dashboard.json"
COMMITTED = {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.json"))}
PANELS = [
    pytest.param(panel, id=f"{board.uid}: {row.title}: {panel.title}")
    for board in BOARDS
    for row in board.rows
    for panel in row.panels
]


def boards() -> dict[str, Any]:
    return {name: json.loads(content) for name, content in COMMITTED.items()}


def test_what_is_committed_is_what_is_made() -> None:
    assert files() == COMMITTED, "run: make dashboards"


def test_a_board_that_is_no_longer_made_is_removed(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}", encoding="utf-8")
    main(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(COMMITTED)


def _checked(*paths: Path) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).parent / "check-jsonschema")
    command = [program, "--schemafile", str(SCHEMA), *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_they_fit_grafanas_schema(tmp_path: Path) -> None:
    done = _checked(*(FOLDER / name for name in COMMITTED))
    assert done.returncode == 0, done.stdout
    broken = boards()["softmux-service.json"]
    broken["panels"][1]["gridPos"]["w"] = "wide"
    (tmp_path / "broken.json").write_text(json.dumps(broken), encoding="utf-8")
    assert _checked(tmp_path / "broken.json").returncode == 1, "the schema sees nothing"


@pytest.mark.parametrize("panel", PANELS)
def test_every_query_names_declared_metrics_and_their_labels(panel: Any) -> None:
    assert panel.queries
    for query in panel.queries:
        found = asked(query.expr)
        assert found.metrics
        known = {"instance", "le"}
        for name in found.metrics:
            assert name.startswith(PREFIX)
            known |= set(declared(name.removeprefix(PREFIX)).labels)
        assert found.labels <= known, f"{query.expr}: no such labels: {found.labels - known}"
        shown = {label.strip() for label in query.legend.split("{{")[1:] for label in [label.partition("}}")[0]]}
        assert shown <= found.labels, f"the legend {query.legend} shows what the query does not keep"


def test_a_name_or_label_that_is_not_declared_is_refused_when_it_is_written() -> None:
    with pytest.raises(KeyError):
        rate("requests_totals")
    with pytest.raises(KeyError, match="outcom"):
        rate("requests_total", "outcom")
    with pytest.raises(KeyError):
        now("worker_up_count")


@pytest.mark.parametrize("name", sorted(COMMITTED))
def test_a_person_finds_their_way(name: str) -> None:
    board = boards()[name]
    assert board["title"].startswith("softmux: ")
    assert board["description"]
    assert [link["tags"] for link in board["links"]] == [["softmux"]], "the others are a click away"
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert 0 <= place["x"] <= place["x"] + place["w"] <= 24
        if panel["type"] not in ("row", "text"):
            assert panel["description"].endswith(".")
            assert panel["fieldConfig"]["defaults"].get("unit") or panel["type"] == "table"
            assert {target["refId"] for target in panel["targets"]} <= set("ABCDEFGH")
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    spots = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(spots)) == len(spots), "panels lie on each other"


def test_panels_link_to_the_runbook_entry_of_their_alert() -> None:
    runbook = boards()["softmux-runbook.json"]
    titles = {panel["id"]: panel["title"] for panel in runbook["panels"]}
    linked = 0
    for board in boards().values():
        for panel in board["panels"]:
            for link in panel.get("links") or []:
                uid, _, number = link["url"].removeprefix("/d/").partition("?viewPanel=panel-")
                assert uid == runbook["uid"]
                assert link["title"] == f"Runbook: {titles[int(number)]}"
                linked += 1
    assert linked > 20
    assert [title.lower() for title in titles.values()] == anchors()


def test_every_variable_is_used_and_every_used_one_is_there() -> None:
    for board in boards().values():
        variables = {variable["name"] for variable in board["templating"]["list"]}
        text = json.dumps(board["panels"])
        for name in variables - {"datasource"}:
            assert f"${name}" in text, f"{board['uid']} has no use for {name}"
        assert "datasource" in variables
        for name in ("instance", "task", "tenant"):
            assert (f'"${name}' in text.replace('\\"', '"')) <= (name in variables)


def test_compose_gives_grafana_the_dashboards_where_it_looks_for_them() -> None:
    mounts = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]["grafana"]["volumes"]
    (provider,) = yaml.safe_load(
        (ROOT / "deploy/grafana/provisioning/dashboards/softmux.yml").read_text(encoding="utf-8")
    )["providers"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in mounts
    (source,) = yaml.safe_load(
        (ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text(encoding="utf-8")
    )["datasources"]
    for board in boards().values():
        chosen = next(one for one in board["templating"]["list"] if one["name"] == "datasource")
        assert chosen["current"]["value"] == source["uid"]
