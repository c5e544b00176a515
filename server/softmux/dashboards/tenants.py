"""“softmux: tenants”: who uses what, who is refused, and by which limit."""

from __future__ import annotations

from softmux.dashboards.panels import Board, Panel, Query, Row
from softmux.dashboards.queries import grown, now, part_of_all, rate, share, top

_USE = (
    Panel(
        "Requests by tenant",
        "Requests that ran, of the ten tenants with most.",
        (Query(top(rate("tenant_requests_total", "tenant"), 10), "{{tenant}}"),),
        "reqps",
        "areas",
    ),
    Panel(
        "Tokens by tenant",
        "Prompts' and generated ones.",
        (Query(top(rate("tenant_tokens_total", "tenant", where='kind!="cached"'), 10), "{{tenant}}"),),
        "cps",
        "areas",
    ),
    Panel(
        "Tokens by kind",
        "`cached` ones were not computed: prompts' and learned ones found in the prefix cache.",
        (Query(rate("tenant_tokens_total", "kind"), "{{kind}}"),),
        "cps",
    ),
    Panel(
        "The engine's time",
        "Seconds a second, by who had it: an estimate by tokens computed.",
        (Query(top(rate("tenant_engine_seconds_total", "tenant"), 10), "{{tenant}}"),),
        "none",
        "areas",
    ),
    Panel(
        "Share of the engine's time",
        "Beside the weights: where all want more than there is, these are alike.",
        (
            Query(
                part_of_all("tenant_engine_seconds_total", "tenant"),
                "{{tenant}}",
            ),
        ),
        "percentunit",
    ),
    Panel(
        "Waiting by tenant",
        "What waits, in tokens generated (an input token counts an eighth).",
        (Query(top(now("tenant_queue_cost", "tenant"), 10), "{{tenant}}"),),
        "short",
        "areas",
        alert="SoftmuxOverloaded",
    ),
)

_LIMITS = (
    Panel(
        "Refused by tenant and limit",
        "Requests and uploads.",
        (Query(top(rate("tenant_refusals_total", "tenant", "limit"), 10), "{{tenant}}: {{limit}}"),),
        "reqps",
    ),
    Panel(
        "Refused by limit",
        "Of all tenants, within the hour before.",
        (Query(grown("limit_refusals_total", "1h", "limit"), "{{limit}}"),),
        "short",
    ),
    Panel(
        "Refused, beside what ran",
        "Share of what tenants asked that a limit refused.",
        (
            Query(
                share(
                    rate("tenant_refusals_total"),
                    f"{rate('tenant_requests_total')} + {rate('tenant_refusals_total')}",
                ),
                "refused",
            ),
        ),
        "percentunit",
    ),
    Panel(
        "Limits",
        "Of the first 64 tenants by name that have any.",
        (Query(now("tenant_limit", "tenant", "limit", how="max")),),
        shows="labels",
        wide=12,
    ),
    Panel(
        "Weights",
        "Shares of the engine beside each other's; a tenant that is not listed has 1.",
        (Query(now("tenant_weight", "tenant", how="max")),),
        shows="labels",
        wide=12,
    ),
)

_BOOKS = (
    Panel(
        "Draws from limits",
        "How servers draw from tenants' limits in Redis; `unanswered`: each goes by its own share.",
        (Query(rate("limit_draws_total", "outcome"), "{{outcome}}"),),
        "cps",
        alert="SoftmuxRegistryDown",
    ),
    Panel(
        "Use told to the registry",
        "`unanswered` is kept in memory, and told later.",
        (Query(rate("usage_flushes_total", "outcome"), "{{outcome}}"),),
        "cps",
        alert="SoftmuxUsageUntold",
    ),
    Panel(
        "Uploads by outcome",
        "`created`, `unchanged`, or an error's code.",
        (Query(rate("adapter_uploads_total", "outcome"), "{{outcome}}"),),
        "cps",
    ),
)

TENANTS = Board(
    "softmux-tenants",
    "softmux: tenants",
    "Who uses what, who is refused, and by which limit.",
    (Row("Use", _USE), Row("Limits", _LIMITS), Row("Books", _BOOKS)),
    (("tenant", "tenant_requests_total"),),
)
