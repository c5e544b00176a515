"""“softmux: GPU and engine”: steps, batches, memory, and the ways the model runs."""

from __future__ import annotations

from softmux.dashboards.panels import Board, Panel, Query, Row
from softmux.dashboards.queries import grown, now, part_of, quantile, rate, share

_STEPS = (
    Panel("Steps", "Forward passes a second.", (Query(rate("engine_steps_total")),), "cps", "number", wide=4),
    Panel("Generated", "Tokens a second.", (Query(rate("engine_generated_tokens_total")),), "cps", "number", wide=4),
    Panel(
        "Computed",
        "Tokens a second, inputs' included.",
        (Query(rate("engine_step_tokens_total")),),
        "cps",
        "number",
        wide=4,
    ),
    Panel("Step, p95", "Duration.", (Query(quantile("step_seconds", 0.95)),), "s", "number", wide=4),
    Panel(
        "KV pool",
        "Share in use, in the fullest server; what the cache holds counts.",
        (Query(now("kv_cache_usage_perc", how="max")),),
        "percentunit",
        "number",
        wide=4,
    ),
    Panel(
        "Device memory",
        "Share in use, in the fullest server.",
        (
            Query(
                part_of("device_memory_used_bytes", "device_memory_total_bytes"),
            ),
        ),
        "percentunit",
        "number",
        limits=(0.95, 0.99),
        alert="SoftmuxOutOfMemory",
        wide=4,
    ),
    Panel(
        "How long a step takes",
        "Scheduling, running and booking it.",
        tuple(Query(quantile("step_seconds", q), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99)),
        "s",
    ),
    Panel(
        "Rows of a step",
        "Sequences in one forward pass.",
        tuple(Query(quantile("batch_rows", q), f"p{q * 100:g}") for q in (0.5, 0.95)),
    ),
    Panel(
        "Tokens of a step",
        "In the mean, beside what one may have: less than asked for while memory is short.",
        (
            Query(share(rate("engine_step_tokens_total"), rate("engine_steps_total")), "mean"),
            Query(now("step_token_limit", how="min"), "limit"),
        ),
    ),
    Panel(
        "Rows by method",
        "The batch's mix, by the adapters' method.",
        (Query(rate("engine_rows_total", "method"), "{{method}}"),),
        "cps",
        "areas",
    ),
    Panel(
        "Different adapters in a step",
        "How mixed batches are.",
        tuple(Query(quantile("batch_adapters", q), f"p{q * 100:g}") for q in (0.5, 0.95)),
    ),
    Panel(
        "Busy",
        "Share of the time in which a step ran.",
        (Query(rate("step_seconds_sum", "instance"), "{{instance}}"),),
        "percentunit",
    ),
)

_MEMORY = (
    Panel(
        "Device memory",
        "Of the GPU, or of the host where the model runs on its CPU. `worker`: what the worker holds of it.",
        (
            Query(now("device_memory_used_bytes"), "in use"),
            Query(now("device_memory_reserved_bytes"), "worker"),
            Query(now("model_weight_bytes"), "base weights"),
            Query(now("device_memory_total_bytes"), "all"),
        ),
        "bytes",
        alert="SoftmuxOutOfMemory",
    ),
    Panel(
        "KV pool",
        "Share in use by server.",
        (Query(now("kv_cache_usage_perc", "instance", how="max"), "{{instance}}"),),
        "percentunit",
    ),
    Panel(
        "Sequences put back",
        "The pool was full, and they are computed again.",
        (Query(rate("num_preemptions_total"), "preempted"),),
        "cps",
        alert="SoftmuxPreempting",
    ),
    Panel(
        "Steps without memory",
        "Within the hour before: run in parts (`split`), or put back (`requeued`).",
        (Query(grown("out_of_memory_total", "1h", "answer"), "{{answer}}"),),
        alert="SoftmuxOutOfMemory",
    ),
    Panel(
        "Refused for want of memory",
        "Waiting sequences, within the hour before.",
        (Query(grown("requests_shed_total", "1h"), "refused"),),
        alert="SoftmuxOutOfMemory",
    ),
    Panel(
        "Queue",
        "What waits, in tokens generated, and what the engine does of it a second.",
        (Query(now("queue_cost"), "waits"), Query(now("queue_cost_per_second"), "a second")),
        alert="SoftmuxQueueSlow",
    ),
)

_WAYS = (
    Panel(
        "Steps by the way they ran",
        "`graph` and `fused` are the fast ones on a GPU; on a CPU it is the `module`.",
        (Query(rate("engine_step_ways_total", "way"), "{{way}}"),),
        "cps",
        "areas",
    ),
    Panel(
        "Fast ways left",
        "Within the hour before. A graph is also left where a step has none of its size.",
        (Query(grown("fast_path_fallbacks_total", "1h", "path"), "{{path}}"),),
        alert="SoftmuxFastPathLeft",
    ),
    Panel(
        "Restarts",
        "Workers started again, by server.",
        (Query(grown("worker_restarts_total", "1h", "instance"), "{{instance}}"),),
        alert="SoftmuxWorkerRestarts",
    ),
    Panel(
        "What runs",
        "By server.",
        (Query(now("server_info", "instance", "version", "model", "dtype", "device", how="max")),),
        shows="labels",
        wide=12,
    ),
    Panel(
        "Ways in use",
        "By server.",
        (Query(now("fast_paths_info", "instance", "attention", "layers", "graphs", "products", how="max")),),
        shows="labels",
        wide=12,
    ),
)

ENGINE = Board(
    "softmux-engine",
    "softmux: GPU and engine",
    "Steps, batches, memory, and the ways the model runs.",
    (Row("Steps", _STEPS), Row("Memory", _MEMORY), Row("Ways", _WAYS)),
)
