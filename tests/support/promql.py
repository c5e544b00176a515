"""What a PromQL expression asks for: each metric, and the labels it is chosen and grouped by."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import promql_parser as promql


@dataclass(slots=True)
class Asked:
    metrics: set[str] = field(default_factory=set)
    labels: set[str] = field(default_factory=set)


def asked(expression: str) -> Asked:
    """Raises `ValueError` where it is no PromQL. Grafana's variables may stand in it."""
    found = Asked()

    def visit(node: object) -> bool:
        if isinstance(node, promql.VectorSelector):
            found.metrics.add(node.name or "")
            found.labels |= {matcher.name for matcher in node.matchers.matchers}
        elif isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            found.labels |= set(node.modifier.labels)
        elif isinstance(node, promql.BinaryExpr) and node.modifier is not None and node.modifier.matching is not None:
            found.labels |= set(node.modifier.matching.labels)
        return True

    promql.walk(promql.parse(filled(expression)), pre_visit=visit)
    return found


def filled(expression: str, *, interval: str = "1m") -> str:
    """With Grafana's variables in: everything is chosen."""
    expression = expression.replace("$__rate_interval", interval)
    return re.sub(r"\$(?!__)\w+", ".*", expression)
