"""Every metric, declared once. Plain data: imported by the worker, the API and the documentation's test alike.

Names are vLLM's where the thing is the same, with `softmux_` in place of `vllm:`; this table leaves the prefix out.
`source` says who knows the value: the worker sends its own in `Stats`, keyed by these names; the API observes the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from softmux.telemetry.labels import OTHER
from softmux.types import DEFAULT_TENANT, Method

PREFIX = "softmux_"
Kind = Literal["counter", "gauge", "histogram"]
Source = Literal["api", "supervisor", "worker"]
Across = Literal["sum", "mean", "max", "min"]
"""What several workers' gauges say together."""

LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds of one step, one load, one wait."""
FINE = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Seconds of work on grammars, from a tenth of a millisecond on."""
REQUEST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds of a whole request."""
COUNTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
TOKENS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: its name without the prefix, its labels, and for a histogram its buckets' upper bounds."""

    name: str
    kind: Kind
    source: Source
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    across: Across = "sum"
    known: tuple[tuple[str, ...], ...] = ()
    """Values of the labels that are there from the start, at 0: a rate over what has never happened is then 0, and an
    alert sees the first time."""


def _each(*values: str) -> tuple[tuple[str, ...], ...]:
    return tuple((value,) for value in values)


BARE = "(base)"
"""The label of requests to the bare model: no task can have this name."""
LIMITS = ("requests_per_minute", "tokens_per_minute", "tokens_in_flight", "stored_bytes", "adapters")


METRICS: tuple[Metric, ...] = (
    # requests
    Metric(
        "requests_total",
        "counter",
        "api",
        "Requests by task and outcome (ok, an error's code, or gone).",
        ("task", "outcome"),
        known=tuple(
            (BARE, outcome) for outcome in ("ok", "internal", "engine_down", "overloaded", "deadline_exceeded")
        ),
    ),
    Metric(
        "request_success_total",
        "counter",
        "api",
        "Finished choices by the reason they ended.",
        ("finished_reason",),
        known=_each("stop", "length"),
    ),
    Metric(
        "http_requests_total",
        "counter",
        "api",
        "Answers of every route by method and status.",
        ("method", "status"),
        known=(("POST", "200"), ("POST", "500"), ("POST", "503")),
    ),
    Metric(
        "prompt_tokens_total",
        "counter",
        "api",
        "Tokens of prompts, without learned ones.",
        ("task",),
        known=_each(BARE),
    ),
    Metric("generation_tokens_total", "counter", "api", "Tokens generated.", ("task",), known=_each(BARE)),
    Metric(
        "requests_beyond_trained_lengths_total",
        "counter",
        "api",
        "Requests with an input longer, or shorter, than those its version was trained on, where that is said.",
        ("task", "side"),
        known=((OTHER, "longer"), (OTHER, "shorter")),
    ),
    Metric("e2e_request_latency_seconds", "histogram", "api", "From a request's receipt to its end.", (), REQUEST),
    Metric(
        "time_to_first_token_seconds", "histogram", "api", "From a request's receipt to its first token.", (), REQUEST
    ),
    Metric(
        "inter_token_latency_seconds",
        "histogram",
        "api",
        "Between tokens of one choice, as they reach the API.",
        (),
        LATENCY,
    ),
    Metric("request_prompt_tokens", "histogram", "api", "Prompt tokens of a request.", (), TOKENS),
    Metric("request_generation_tokens", "histogram", "api", "Tokens a request generated.", (), TOKENS),
    Metric(
        "adapter_uploads_total",
        "counter",
        "api",
        "Uploads by outcome (created, unchanged, or an error's code).",
        ("outcome",),
        known=_each("created", "unchanged", "invalid_adapter", "base_mismatch"),
    ),
    Metric(
        "adapter_swap_seconds",
        "histogram",
        "api",
        "From an upload's or activation's receipt to its serving.",
        (),
        REQUEST,
    ),
    Metric(
        "limit_refusals_total",
        "counter",
        "api",
        "Requests and uploads refused by the tenant's limit they met.",
        ("limit",),
        known=_each(*LIMITS),
    ),
    Metric(
        "tenant_requests_total",
        "counter",
        "api",
        "Requests that ran, by whose they were.",
        ("tenant",),
        known=_each(DEFAULT_TENANT),
    ),
    Metric(
        "tenant_tokens_total",
        "counter",
        "api",
        "Tokens by whose they were: prompt, cached (of these and of learned ones), completion.",
        ("tenant", "kind"),
        known=tuple((DEFAULT_TENANT, kind) for kind in ("prompt", "cached", "completion")),
    ),
    Metric(
        "tenant_engine_seconds_total",
        "counter",
        "api",
        "The engine's time by who had it.",
        ("tenant",),
        known=_each(DEFAULT_TENANT),
    ),
    Metric(
        "tenant_refusals_total",
        "counter",
        "api",
        "Requests and uploads refused by the tenant and its limit they met.",
        ("tenant", "limit"),
        known=((DEFAULT_TENANT, "requests_per_minute"),),
    ),
    Metric("tenant_limit", "gauge", "supervisor", "The limits that tenants have.", ("tenant", "limit")),
    Metric("tenant_weight", "gauge", "supervisor", "Tenants' shares of the engine beside each other's.", ("tenant",)),
    Metric(
        "tenant_queue_cost",
        "gauge",
        "supervisor",
        "What waits, by tenant, in tokens generated.",
        ("tenant",),
        known=_each(DEFAULT_TENANT),
    ),
    Metric(
        "limit_draws_total",
        "counter",
        "api",
        "Times this server drew from tenants' limits in Redis, or gave back (granted, refused, unanswered).",
        ("outcome",),
        known=_each("granted", "refused", "unanswered"),
    ),
    Metric(
        "usage_flushes_total",
        "counter",
        "api",
        "Times the registry was told what tenants used (done), or could not be (unanswered).",
        ("outcome",),
        known=_each("done", "unanswered"),
    ),
    Metric(
        "worker_restarts_total",
        "counter",
        "supervisor",
        "How often the worker was started again after a crash or hang.",
    ),
    Metric(
        "worker_deaths_total",
        "counter",
        "supervisor",
        "Workers that died, by cause: crash, hang, or refused at their start.",
        ("cause",),
        known=_each("crash", "hang", "refused"),
    ),
    Metric(
        "quarantined",
        "gauge",
        "supervisor",
        "Requests and versions in quarantine, and suspects of either, that run one at a time.",
        ("what",),
        known=_each("requests", "versions", "suspects"),
    ),
    Metric(
        "requests_refused_total",
        "counter",
        "api",
        "Requests refused before any work, by reason: quarantined_request, quarantined_version, queue (too long a "
        "wait), deadline (it would pass), draining.",
        ("reason",),
        known=_each("quarantined_request", "quarantined_version", "queue", "deadline", "draining"),
    ),
    Metric(
        "rows_not_finite_total",
        "counter",
        "api",
        "Rows that failed because of NaN or infinity, by whose they were: adapter, base.",
        ("model",),
        known=_each("adapter", "base"),
    ),
    Metric("worker_up", "gauge", "supervisor", "Replicas of the engine that answer: 1, or 0, where there is one."),
    Metric("workers", "gauge", "supervisor", "Replicas of the engine that there should be."),
    Metric("registry_up", "gauge", "supervisor", "1 while the process that answers reaches the registry."),
    Metric("registry_tasks", "gauge", "supervisor", "Tasks that process knows, of all tenants."),
    # the engine
    Metric(
        "request_queue_time_seconds", "histogram", "worker", "From a sequence's receipt to its first step.", (), LATENCY
    ),
    Metric("num_requests_running", "gauge", "worker", "Sequences in the batch."),
    Metric("num_requests_waiting", "gauge", "worker", "Sequences waiting for room."),
    Metric("queue_cost", "gauge", "worker", "What waits, in tokens generated (an input token counts an eighth)."),
    Metric(
        "queue_cost_per_second",
        "gauge",
        "worker",
        "The same by second, measured while more was asked than could run.",
    ),
    Metric("num_preemptions_total", "counter", "worker", "Sequences put back because the KV pool was full."),
    Metric("kv_cache_usage_perc", "gauge", "worker", "Share of the KV pool in use, 0 to 1.", across="mean"),
    Metric("kv_cache_capacity_tokens", "gauge", "worker", "Tokens the KV pool has room for."),
    Metric("prefix_cache_queries_total", "counter", "worker", "Input tokens looked up in the prefix cache."),
    Metric("prefix_cache_hits_total", "counter", "worker", "Input tokens found there."),
    Metric("prefix_cache_tokens", "gauge", "worker", "Tokens whose KV the prefix cache holds."),
    Metric("engine_steps_total", "counter", "worker", "Forward passes."),
    Metric(
        "engine_step_ways_total",
        "counter",
        "worker",
        "Forward passes by the way they ran: graph (all rows decode), mixed_graph, fused, module.",
        ("way",),
    ),
    Metric(
        "fast_path_fallbacks_total",
        "counter",
        "worker",
        "Times a fast path was left: its proof failed at load, a step had no graph of its size, or it raised.",
        ("path",),
    ),
    Metric(
        "fast_paths_info",
        "gauge",
        "worker",
        "1, labelled with the ways in use: attention, layers, graphs, products.",
        ("attention", "layers", "graphs", "products"),
    ),
    Metric(
        "out_of_memory_total",
        "counter",
        "worker",
        "Steps for which there was no memory: run in parts (split), or put back into the queue (requeued).",
        ("answer",),
    ),
    Metric("requests_shed_total", "counter", "worker", "Waiting sequences refused because memory was short."),
    Metric(
        "step_token_limit",
        "gauge",
        "worker",
        "Tokens a step may have; less than asked for while memory is short.",
        across="min",
    ),
    Metric("engine_step_tokens_total", "counter", "worker", "Tokens computed by forward passes."),
    Metric("engine_generated_tokens_total", "counter", "worker", "Tokens sampled."),
    Metric(
        "engine_rows_total",
        "counter",
        "worker",
        "Rows of forward passes by their adapter's method; base is the bare model.",
        ("method",),
        known=_each("base", *get_args(Method)),
    ),
    Metric("model_weight_bytes", "gauge", "worker", "What the base's weights take, as they are held."),
    Metric("step_seconds", "histogram", "worker", "Duration of a step.", (), LATENCY),
    Metric("batch_rows", "histogram", "worker", "Rows of a step.", (), COUNTS),
    Metric("batch_adapters", "histogram", "worker", "Distinct adapters of a step.", (), COUNTS),
    Metric(
        "device_memory_total_bytes", "gauge", "worker", "Memory of the device the model runs on; on a CPU, the host's."
    ),
    Metric("device_memory_used_bytes", "gauge", "worker", "What of it is in use, by whatever program."),
    Metric("device_memory_reserved_bytes", "gauge", "worker", "What of it the worker holds."),
    Metric(
        "server_info",
        "gauge",
        "worker",
        "1, labelled with what runs: softmux' version, the base model, its dtype, its device.",
        ("version", "model", "dtype", "device"),
    ),
    # grammars
    Metric(
        "grammar_compile_seconds", "histogram", "worker", "Duration of compiling a grammar, beside the steps.", (), FINE
    ),
    Metric(
        "grammar_cache_total",
        "counter",
        "worker",
        "Sequences with a grammar, by whether it was compiled already (hit) or not (miss).",
        ("outcome",),
    ),
    Metric("grammars_kept", "gauge", "worker", "Compiled grammars that are kept."),
    Metric("grammar_masks_total", "counter", "worker", "Rows of steps that a grammar told which tokens may come."),
    Metric(
        "grammar_mask_seconds", "histogram", "worker", "Time that a step's masks took, beside its forward.", (), FINE
    ),
    Metric("num_requests_with_grammar", "gauge", "worker", "Sequences in the batch that have a grammar."),
    # adapters
    Metric("adapter_loads_total", "counter", "worker", "Adapters made ready, by the tier they came from.", ("tier",)),
    Metric(
        "adapter_files_damaged_total",
        "counter",
        "worker",
        "Files found lost or damaged when an adapter was loaded, by tier: disk (loaded anew), registry (see verify).",
        ("tier",),
    ),
    Metric("adapter_load_seconds", "histogram", "worker", "Duration of such a load.", (), LATENCY),
    Metric("adapter_prefixes_computed_total", "counter", "worker", "Soft prompts whose KV was computed."),
    Metric("adapter_prefixes_copied_total", "counter", "worker", "Soft prompts whose KV was copied in."),
    Metric("adapter_vector_swaps_total", "counter", "worker", "Adapters whose vectors were put into the table."),
    Metric("adapters_in_host_memory", "gauge", "worker", "Adapters in the host tier."),
    Metric("adapters_host_bytes", "gauge", "worker", "Bytes of the host tier."),
    Metric("adapters_with_resident_vectors", "gauge", "worker", "Adapters whose vectors are in the table."),
    Metric("lora_slots_in_use", "gauge", "worker", "Slots of LoRAs and rows of tokens on which rows run now."),
    Metric("lora_slots_resident", "gauge", "worker", "Such slots that hold an adapter, in use or not."),
    Metric("lora_slots_capacity", "gauge", "worker", "Such slots in all."),
    Metric("lora_slot_loads_total", "counter", "worker", "Adapters put into a slot."),
    Metric("adapters_host_capacity_bytes", "gauge", "worker", "What the host tier may take."),
    Metric("adapters_on_disk", "gauge", "worker", "Adapters in the disk tier."),
    Metric("adapters_disk_bytes", "gauge", "worker", "Bytes of the disk tier."),
    Metric("adapters_disk_capacity_bytes", "gauge", "worker", "What the disk tier may take."),
    Metric(
        "lora_requests_info",
        "gauge",
        "worker",
        "Unix time of these names of tasks, the last used first: that run or are resident, that wait; for routing.",
        ("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
        across="max",
    ),
)

BY_NAME: dict[str, Metric] = {metric.name: metric for metric in METRICS}


def worker_buckets() -> dict[str, tuple[float, ...]]:
    """The histograms the worker keeps, with their buckets' upper bounds (+Inf not named)."""
    return {m.name: m.buckets for m in METRICS if m.source == "worker" and m.kind == "histogram"}
