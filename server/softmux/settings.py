"""Every setting of the server, declared once: each is a `SOFTMUX_…` variable and an option of `softmux serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="SOFTMUX_", frozen=True, extra="ignore")

    model: str = Field(default="", description="The base model: a folder in Hugging Face's layout, or a hub id.")
    host: str = Field(default="127.0.0.1", description="Address to listen on. Beyond loopback, keys must exist.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    api_processes: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Processes that answer HTTP. Default: 1 on a CPU, else one for 4 cores, 8 at most.",
    )
    replicas: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Engines with the whole model each, a GPU each; requests go where their adapter is warm.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where the model runs.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Weights and KV: auto is bfloat16 on CUDA, float32 on the CPU."
    )
    attention_backend: Literal["auto", "triton", "torch", "flashinfer"] = Field(
        default="auto", description="How attention is computed: auto is Triton on CUDA, torch elsewhere."
    )
    quantization: Literal["auto", "fp8", "int8", "nf4"] = Field(
        default="auto",
        description="Linear layers: auto leaves them as they are, fp8 halves their bytes; int8 and nf4 for what was "
        "trained on such a base.",
    )
    kv_cache_dtype: Literal["auto", "fp8"] = Field(
        default="auto", description="Keys and values: auto keeps them in `dtype`, fp8 in half of bfloat16's bytes."
    )
    tensor_parallel: int = Field(
        default=1, ge=1, le=64, description="Processes, each with a GPU, that hold the model between them."
    )
    redis: str | None = Field(default=None, description="redis://… of a real server; without it an embedded one.")
    data: Path = Field(default=Path("softmux-data"), description="Where the registry's and the caches' files live.")
    adapters: Path | None = Field(
        default=None, description="A folder of them, published at start for the tenant `default`."
    )
    blobs: str | None = Field(default=None, description="Blob store URL (file://…, s3://…); default under `data`.")
    admin_key: SecretStr | None = Field(
        default=None, description="A first admin key, set from outside: 16 characters or more."
    )
    admin_key_file: Path | None = Field(default=None, description="A file that holds it; an empty one is refused.")
    metrics_networks: str = Field(default="", description="CIDR list that may read /metrics without a key.")

    max_rows: int = Field(default=256, ge=1, description="Sequences in one step at most.")
    max_step_tokens: int = Field(default=2048, ge=16, description="Token budget of a step (chunked prefill).")
    max_waiting: int = Field(default=4096, ge=1, description="Sequences waiting at most; beyond it 503 overloaded.")
    max_queue_seconds: float = Field(
        default=30.0,
        gt=0,
        description="A request that would wait longer for its turn is refused at once; seconds.",
    )
    kv_tokens: int | None = Field(
        default=None,
        ge=64,
        description="Tokens the KV pool holds. Default: by memory (CUDA), or up to 32,768 in 2 GiB (CPU).",
    )
    kv_memory_fraction: float = Field(default=0.9, gt=0, le=1, description="Share of GPU memory used in all.")
    context_length: int | None = Field(default=None, ge=16, description="Caps the model's own context length.")
    group_by_adapter: bool = Field(
        default=True, description="Let up to 8 waiting rows of one adapter in together, before the next adapter's turn."
    )
    host_cache_bytes: int = Field(default=2 << 30, ge=0, description="Host tier for adapters and compiled KV, bytes.")
    disk_cache_bytes: int = Field(default=20 << 30, ge=0, description="Disk tier for adapters and compiled KV, bytes.")
    resident_vectors: int = Field(default=16384, ge=64, description="Rows of the virtual vocabulary's table.")
    max_loras: int = Field(
        default=64, ge=1, le=1024, description="LoRAs (and trained rows of tokens) that one step mixes at most."
    )
    max_lora_rank: int = Field(default=128, ge=1, le=1024, description="The largest rank of a LoRA that is taken.")
    lora_bytes: int = Field(
        default=1 << 30, ge=1 << 20, description="GPU memory for LoRAs, bytes; those in use stay, others give way."
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads of the engine; default: all cores.")

    max_upload_bytes: int = Field(default=256 << 20, ge=1024, description="One adapter upload at most.")
    max_body_bytes: int = Field(default=4 << 20, ge=1024, description="One JSON body at most.")
    max_grammar_bytes: int = Field(
        default=64 << 10, ge=64, description="A schema, regular expression, list of choices or grammar at most; bytes."
    )
    grammar_seconds: float = Field(
        default=5.0, gt=0, le=60, description="One that takes longer to compile is refused; seconds."
    )
    grammar_cache: int = Field(
        default=256, ge=1, description="Compiled ones that are kept, the last used; each some hundred KiB."
    )
    hang_seconds: float = Field(
        default=8.0,
        ge=1,
        description="An engine that has not moved for so long is taken for hung, and started again; s.",
    )
    load_seconds: float = Field(
        default=1800.0, ge=10, description="The same, while it loads the model or compiles a kernel; seconds."
    )
    quarantine_seconds: float = Field(
        default=3600.0,
        ge=0,
        description="How long a request, or a version, that felled the engine is refused; seconds.",
    )
    not_finite_repeats: int = Field(
        default=3, ge=1, description="Rows with NaN or infinity after which an adapter's version is refused."
    )
    drain_seconds: float = Field(
        default=300.0, ge=0, description="After SIGTERM, running requests may take this long to end; seconds."
    )
    limits_answer_seconds: float = Field(
        default=0.25,
        gt=0,
        le=60,
        description="Redis counts limits over all processes unless it takes longer than this; then each has its share.",
    )
    usage_flush_seconds: float = Field(
        default=5.0,
        gt=0,
        le=3600,
        description="How often an API process tells the registry what tenants used; seconds.",
    )
    usage_days: int = Field(default=400, ge=1, description="Days that tenants' usage is kept.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Log verbosity.")
    log_format: Literal["auto", "json", "text"] = Field(
        default="auto", description="auto: text on a terminal, else a line of JSON for each event."
    )
    otlp_traces_endpoint: str = Field(
        default="",
        description="Where traces go, by OTLP over HTTP: http://collector:4318/v1/traces. None are made without it.",
    )
    log_prompts: bool = Field(default=False, description="Write prompts to the log (off: never).")
