"""“softmux: adapters and cache”: where adapters come from, what the tiers hold, and what is not computed twice."""

from __future__ import annotations

from softmux.dashboards.panels import Board, Panel, Query, Row
from softmux.dashboards.queries import grown, now, quantile, rate, share

_TIERS = (
    Panel(
        "Found in host memory",
        "Share of adapters made ready that were in host memory already. Low: more tasks in turn than it holds.",
        (Query(share(rate("adapter_loads_total", where='tier="host"'), rate("adapter_loads_total"))),),
        "percentunit",
        "number",
        limits=(0.5, 0.9),
        falling=True,
        wide=4,
    ),
    Panel("In host memory", "Adapters.", (Query(now("adapters_in_host_memory")),), "short", "number", wide=4),
    Panel("On disk", "Adapters in the disk tier.", (Query(now("adapters_on_disk")),), "short", "number", wide=4),
    Panel(
        "Prefix cache",
        "Share of input tokens found there, learned ones included.",
        (Query(share(rate("prefix_cache_hits_total"), rate("prefix_cache_queries_total"))),),
        "percentunit",
        "number",
        wide=4,
    ),
    Panel(
        "Load, p95",
        "95 of 100 loads from disk or registry took less.",
        (Query(quantile("adapter_load_seconds", 0.95)),),
        "s",
        "number",
        limits=(0.5, 2.5),
        wide=4,
    ),
    Panel(
        "Damaged, 1 day",
        "Files of the registry found lost or damaged.",
        (Query(grown("adapter_files_damaged_total", "1d", where='tier="registry"')),),
        "short",
        "number",
        limits=(1, 1),
        alert="SoftmuxFilesDamaged",
        wide=4,
    ),
    Panel(
        "Adapters made ready, by tier",
        "Where they came from. `registry` is the slowest: a request waits for Redis and the blob store.",
        (Query(rate("adapter_loads_total", "tier"), "{{tier}}"),),
        "cps",
        "areas",
    ),
    Panel(
        "How long a load takes",
        "From disk or registry into host memory.",
        tuple(Query(quantile("adapter_load_seconds", q), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99)),
        "s",
    ),
    Panel(
        "Host tier",
        "Bytes of adapters in host memory, and what it may take.",
        (Query(now("adapters_host_bytes"), "used"), Query(now("adapters_host_capacity_bytes"), "may take")),
        "bytes",
    ),
    Panel(
        "Disk tier",
        "Bytes of adapters made ready, on disk, and what it may take.",
        (Query(now("adapters_disk_bytes"), "used"), Query(now("adapters_disk_capacity_bytes"), "may take")),
        "bytes",
    ),
    Panel(
        "Adapters, by where they are",
        "On the device: soft prompts' vectors and LoRAs in slots.",
        (
            Query(now("adapters_on_disk"), "disk"),
            Query(now("adapters_in_host_memory"), "host"),
            Query(now("adapters_with_resident_vectors"), "device: vectors"),
            Query(now("lora_slots_resident"), "device: LoRAs"),
        ),
    ),
    Panel(
        "Damaged files",
        "Within the hour before, by tier. `disk`: loaded anew. `registry`: verify names them.",
        (Query(grown("adapter_files_damaged_total", "1h", "tier"), "{{tier}}"),),
        alert="SoftmuxDiskDamaged",
    ),
)

_PROMPTS = (
    Panel(
        "Soft prompts: computed or copied",
        "A cold one is computed once; then its keys and values are copied in.",
        (
            Query(rate("adapter_prefixes_computed_total"), "computed"),
            Query(rate("adapter_prefixes_copied_total"), "copied"),
        ),
        "cps",
    ),
    Panel(
        "Vectors put into the table",
        "Many, for long: `--resident-vectors` is too small for the tasks in turn.",
        (Query(rate("adapter_vector_swaps_total"), "adapters"),),
        "cps",
    ),
    Panel(
        "Prefix cache",
        "Input tokens a second: looked up, and found.",
        (Query(rate("prefix_cache_queries_total"), "looked up"), Query(rate("prefix_cache_hits_total"), "found")),
        "cps",
    ),
    Panel(
        "Tokens in the prefix cache",
        "Whose keys and values it holds, beside what the pool has room for.",
        (Query(now("prefix_cache_tokens"), "cached"), Query(now("kv_cache_capacity_tokens"), "room")),
    ),
    Panel(
        "LoRA slots",
        "`in use`: rows run on them now. All in use: rows wait for one (`--max-loras`).",
        (
            Query(now("lora_slots_in_use"), "in use"),
            Query(now("lora_slots_resident"), "resident"),
            Query(now("lora_slots_capacity"), "all"),
        ),
    ),
    Panel(
        "LoRAs put into slots",
        "Many, for long: more LoRAs in turn than slots.",
        (Query(rate("lora_slot_loads_total"), "adapters"),),
        "cps",
    ),
)

_CHANGES = (
    Panel(
        "Uploads by outcome",
        "`created`, `unchanged`, or an error's code.",
        (Query(rate("adapter_uploads_total", "outcome"), "{{outcome}}"),),
        "cps",
    ),
    Panel(
        "Until a change serves",
        "From an upload's or activation's receipt to its serving.",
        tuple(Query(quantile("adapter_swap_seconds", q), f"p{q * 100:g}") for q in (0.5, 0.9, 0.99)),
        "s",
        alert="SoftmuxSlowUploads",
    ),
    Panel(
        "Different adapters in a step",
        "How mixed batches are.",
        tuple(Query(quantile("batch_adapters", q), f"p{q * 100:g}") for q in (0.5, 0.95)),
    ),
)

ADAPTERS = Board(
    "softmux-adapters",
    "softmux: adapters and cache",
    "Where adapters come from, what the tiers hold, and what is not computed twice.",
    (Row("Tiers", _TIERS), Row("On the device", _PROMPTS), Row("Changes", _CHANGES)),
)
