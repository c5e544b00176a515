"""docs/metrics.md says what `METRICS` says: every metric, its kind, its labels, its help, and nothing else."""

from __future__ import annotations

from pathlib import Path

from softmux.telemetry.metrics import METRICS, PREFIX

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_page_lists_exactly_the_metrics() -> None:
    expected = [
        f"| `{PREFIX}{metric.name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels) or '–'} "
        f"| {metric.help} |"
        for metric in METRICS
    ]
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{PREFIX}")]
    assert rows == expected
