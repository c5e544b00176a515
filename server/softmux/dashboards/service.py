"""“softmux: service”: is it answering, how fast, and if not, what is it."""

from __future__ import annotations

from softmux.dashboards.panels import Board, Panel, Query, Row
from softmux.dashboards.queries import grown, mean, now, quantile, rate, share, top

_FAILED = 'outcome=~"internal|engine_down|registry_down|overloaded|deadline_exceeded"'


def _quantiles(name: str) -> tuple[Query, ...]:
    return tuple(Query(quantile(name, q), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99))


_NOW = (
    Panel(
        "Engines up",
        "Servers whose engine answers.",
        (Query(now("worker_up")),),
        "none",
        "number",
        limits=(1, 1),
        falling=True,
        alert="SoftmuxWorkerDown",
        wide=3,
    ),
    Panel("Requests", "Requests that ended.", (Query(rate("requests_total")),), "reqps", "number", wide=3),
    Panel(
        "Failed",
        "Share of requests that failed for no fault of the client's.",
        (Query(share(rate("requests_total", where=_FAILED), rate("requests_total"))),),
        "percentunit",
        "number",
        limits=(0.005, 0.072),
        alert="SoftmuxErrorBudgetFast",
        wide=3,
    ),
    Panel(
        "First token, p95",
        "95 of 100 first tokens came sooner than this.",
        (Query(quantile("time_to_first_token_seconds", 0.95)),),
        "s",
        "number",
        limits=(1, 2.5),
        alert="SoftmuxSlowFirstToken",
        wide=3,
    ),
    Panel("Tokens", "Tokens generated.", (Query(rate("generation_tokens_total")),), "cps", "number", wide=3),
    Panel(
        "Waiting",
        "Sequences that wait for room in the batch.",
        (Query(now("num_requests_waiting")),),
        "short",
        "number",
        limits=(64, 512),
        alert="SoftmuxQueueSlow",
        wide=3,
    ),
    Panel(
        "Registry",
        "Servers that reach the registry.",
        (Query(now("registry_up")),),
        "none",
        "number",
        limits=(1, 1),
        falling=True,
        alert="SoftmuxRegistryDown",
        wide=3,
    ),
    Panel(
        "Restarts, 1 h",
        "How often workers were started again within the last hour.",
        (Query(grown("worker_restarts_total", "1h")),),
        "short",
        "number",
        limits=(1, 3),
        alert="SoftmuxWorkerRestarts",
        wide=3,
    ),
)

_REQUESTS = (
    Panel(
        "Requests by outcome",
        "`ok`, `gone` (the client left), or an error's code.",
        (Query(rate("requests_total", "outcome"), "{{outcome}}"),),
        "reqps",
        "areas",
    ),
    Panel(
        "Errors by code",
        "What did not end well, and why.",
        (Query(rate("requests_total", "outcome", where='outcome!~"ok|gone"'), "{{outcome}}"),),
        "reqps",
        alert="SoftmuxErrorBudgetFast",
    ),
    Panel(
        "HTTP answers by status",
        "Of every route, health checks and uploads included.",
        (Query(rate("http_requests_total", "status"), "{{status}}"),),
        "reqps",
        alert="SoftmuxErrors",
    ),
    Panel(
        "The busiest tasks",
        "Requests of the ten tasks with most; `other` are those without a label of their own.",
        (Query(top(rate("requests_total", "task"), 10), "{{task}}"),),
        "reqps",
    ),
    Panel(
        "Refused before any work",
        "By reason: the queue is too long, the deadline would pass, draining, or quarantine.",
        (Query(rate("requests_refused_total", "reason"), "{{reason}}"),),
        "reqps",
        alert="SoftmuxOverloaded",
    ),
    Panel(
        "Ends of choices",
        "`stop`: the model's end or a stop string; `length`: `max_tokens`.",
        (Query(rate("request_success_total", "finished_reason"), "{{finished_reason}}"),),
        "cps",
        "areas",
    ),
)

_LATENCY = (
    Panel(
        "Time to first token",
        "From a request's receipt.",
        _quantiles("time_to_first_token_seconds"),
        "s",
        limits=(1, 2.5),
        alert="SoftmuxSlowFirstToken",
    ),
    Panel("Between tokens", "Of one choice, as they reach the API.", _quantiles("inter_token_latency_seconds"), "s"),
    Panel("Whole request", "From receipt to end.", _quantiles("e2e_request_latency_seconds"), "s"),
    Panel(
        "Time in the queue",
        "From a sequence's receipt by the worker to its first step. Beside the time to first token it tells load from "
        "long prompts and cold adapters.",
        _quantiles("request_queue_time_seconds"),
        "s",
        alert="SoftmuxQueueSlow",
    ),
    Panel(
        "First tokens, all of them",
        "How many took how long.",
        (Query(rate("time_to_first_token_seconds_bucket", "le"), "{{le}}"),),
        "s",
        "heat",
        wide=16,
    ),
)

_LOAD = (
    Panel(
        "Running and waiting",
        "Sequences in the batch, and those that wait for room.",
        (Query(now("num_requests_running"), "running"), Query(now("num_requests_waiting"), "waiting")),
        "short",
        alert="SoftmuxQueueSlow",
    ),
    Panel(
        "Tokens a second",
        "Of prompts (without learned ones), and generated.",
        (Query(rate("prompt_tokens_total"), "prompt"), Query(rate("generation_tokens_total"), "generated")),
        "cps",
    ),
    Panel(
        "Size of requests",
        "Tokens of a request, in the mean.",
        (
            Query(mean("request_prompt_tokens"), "prompt"),
            Query(mean("request_generation_tokens"), "generated"),
        ),
        "short",
    ),
    Panel(
        "Beyond what a task was trained on",
        "Requests with an input longer, or shorter, than the version's training had. Many: train it on such inputs.",
        (Query(rate("requests_beyond_trained_lengths_total", "task", "side"), "{{task}}: {{side}}"),),
        "cps",
    ),
    Panel(
        "How long the queue takes",
        "What waits, by what the engine has done a second while more was asked than could run; 0 where that was never.",
        (Query(share(now("queue_cost"), now("queue_cost_per_second")), "wait"),),
        "s",
        limits=(10, 20),
        alert="SoftmuxQueueSlow",
    ),
    Panel(
        "KV pool in use",
        "Share of the pool that holds keys and values, cached ones included, in the fullest server.",
        (Query(now("kv_cache_usage_perc", how="max"), "in use"),),
        "percentunit",
        alert="SoftmuxPreempting",
    ),
    Panel(
        "Rows by method",
        "The batch's mix: rows of forward passes by their adapter's method.",
        (Query(rate("engine_rows_total", "method"), "{{method}}"),),
        "cps",
        "areas",
    ),
)

_FAULTS = (
    Panel(
        "Workers that died",
        "Within the hour before, by cause.",
        (Query(grown("worker_deaths_total", "1h", "cause"), "{{cause}}"),),
        "short",
        alert="SoftmuxWorkerRestarts",
    ),
    Panel(
        "Quarantine",
        "Requests and versions that felled the engine, and suspects of either.",
        (Query(now("quarantined", "what", how="max"), "{{what}}"),),
        "short",
        alert="SoftmuxQuarantine",
    ),
    Panel(
        "Rows with NaN or infinity",
        "By whose they were. An adapter's is its tenant's to mend, the base's is yours.",
        (Query(rate("rows_not_finite_total", "model"), "{{model}}"),),
        "cps",
        alert="SoftmuxNotFinite",
    ),
    Panel(
        "Reach of the registry",
        "1 where a server reaches it.",
        (Query(now("registry_up", "instance", how="min"), "{{instance}}"),),
        "none",
        alert="SoftmuxRegistryDown",
    ),
    Panel(
        "Tasks known",
        "Of all tenants, as each server knows them.",
        (Query(now("registry_tasks", "instance"), "{{instance}}"),),
        "short",
        alert="SoftmuxRegistryShrank",
    ),
    Panel(
        "Replicas up",
        "By server, those that answer, and how many there should be.",
        (
            Query(now("worker_up", "instance", how="min"), "{{instance}}: up"),
            Query(now("workers", "instance", how="max"), "{{instance}}: should be"),
        ),
        "none",
        alert="SoftmuxReplicaDown",
    ),
)

SERVICE = Board(
    "softmux-service",
    "softmux: service",
    "Is it answering, how fast, and if not, what is it.",
    (
        Row("Now", _NOW),
        Row("Requests", _REQUESTS),
        Row("Latency", _LATENCY),
        Row("Load", _LOAD),
        Row("Faults", _FAULTS),
    ),
    (("task", "requests_total"),),
)
