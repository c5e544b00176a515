"""The values that travel between softmux's parts: frozen, typed, free of torch, HTTP and Redis.

Structs are msgspec structs, so that the same value goes over the wire between the API and the worker.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Method = Literal[
    "prompt_tuning",
    "prefix_tuning",
    "p_tuning",
    "p_tuning_v2",
    "cpt",
    "cartridge",
    "lora",
    "trainable_tokens",
    "lora+prompt_tuning",
    "lora+prefix_tuning",
    "lora+p_tuning",
    "lora+p_tuning_v2",
    "lora+cpt",
    "lora+cartridge",
]
KV_METHODS: frozenset[str] = frozenset(
    {"prefix_tuning", "p_tuning_v2", "cartridge", "lora+prefix_tuning", "lora+p_tuning_v2", "lora+cartridge"}
)
"""The methods whose virtual tokens are trained keys and values: they lead, and no vector stands behind them."""

Family = Literal["decoder", "encoder", "encoder-decoder"]
HeadKind = Literal["sequence", "token"]
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
FinishReason = Literal["stop", "length", "abort"]

DEFAULT_TENANT = "default"


class LayerKV(msgspec.Struct, frozen=True):
    """The shape of one layer's keys and values: `[tokens, kv_heads, head_dim]` each."""

    kv_heads: int
    head_dim: int


class LinearShape(msgspec.Struct, frozen=True, array_like=True):
    """A linear module of the base: its path in the unmodified module, and the widths of its input and output.

    `scale` is the root mean square of its weight's numbers, by which a LoRA's unusual size is told; 0 where it is not
    known.
    """

    name: str
    inputs: int
    outputs: int
    scale: float = 0.0


class BaseHead(msgspec.Struct, frozen=True, array_like=True):
    """How the dense layer and the norm before a head are built, where the base's config says so: the activation between
    the two (by transformers' name), which of them has a bias, and the norm's epsilon."""

    activation: str
    bias: bool
    norm_bias: bool
    eps: float


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What everything outside the engine may know of the base model.

    `base_fingerprint` is `sha256:…` over the weights and the config fields that change the function;
    `tokenizer_fingerprint` over the tokenizer's files. `context_length` counts virtual tokens too.
    """

    model_id: str
    architecture: str
    dtype: str
    hidden_size: int
    vocab_size: int
    context_length: int
    base_fingerprint: str
    tokenizer_fingerprint: str
    layers: tuple[LayerKV, ...]
    eos_token_ids: tuple[int, ...]
    parameters: int
    device: str
    embedding_norm: float
    """Mean L2 norm of the embedding rows, by which an adapter's unusual norms are told."""
    quantization: str | None = None
    """The format of linear layers' weights where they are quantised. `int8` and `nf4`, on which adapters are trained,
    are part of `base_fingerprint`; `fp8` is not."""
    weight_bytes: int = 0
    """What the base's weights take, scales included."""
    kv_cache_dtype: str | None = None
    """`fp8` where keys and values are kept in fewer bits than `dtype`."""
    model_type: str = ""
    """The config's `model_type`, as `llama` or `bert`."""
    family: Family = "decoder"
    serves: frozenset[str] = frozenset({"prompt", "prefix"})
    """The kinds of parts that this engine runs on this base (`softmux.formats.parts`); others are refused at
    admission, by `softmux.formats.serving`."""
    linears: tuple[LinearShape, ...] = ()
    """What a LoRA may act on."""
    input_embedding: str = ""
    output_embedding: str = ""
    """Paths of the module's embedding and of its output projection; empty where it has none."""
    tied_embeddings: bool = False
    """Whether these two share one weight."""
    base_head: BaseHead | None = None
    """None, too, where the base's config is not known."""

    @property
    def kv_format(self) -> str:
        """All that shapes keys and values beside the checkpoint and the input: a part of every cache's key. A server
        of quantised weights takes the same adapters as one of full ones, but not its caches."""
        words = [self.dtype]
        if self.quantization:
            words.append(f"weights {self.quantization}")
        if self.kv_cache_dtype:
            words.append(f"kv {self.kv_cache_dtype}")
        return ", ".join(words)


class FileEntry(msgspec.Struct, frozen=True):
    """A file of a version: its name, `sha256:…` of its bytes, its length in bytes."""

    name: str
    sha256: str
    size: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable adapter version. `digest` (`sha256:…`) covers the files and the base; nothing else names weights.

    `virtual_tokens` is the number of learned vectors a request's input carries; `parameters` counts learned numbers.
    """

    digest: str
    method: Method
    base_fingerprint: str
    files: tuple[FileEntry, ...]
    virtual_tokens: int
    parameters: int
    template: str | None = None
    labels: tuple[str, ...] | dict[str, str] | None = None
    trained_lengths: tuple[int, int] | None = None
    notes: str | None = None
    base_label: str | None = None
    """`base_model_name_or_path` as the uploader wrote it: shown, never opened."""
    tokenizer_label: str | None = None
    """`tokenizer_name_or_path`, likewise."""
    revision_label: str | None = None
    """`revision`, likewise."""
    tokenizer_fingerprint: str | None = None
    """As `softmux.json` gives it, and then equal to the server's at admission."""
    combines: bool | None = None
    """`combines` of `softmux.json`."""
    head: HeadKind | None = None
    """The kind of classification head it brings; None generates. `labels` are then those of the head's outputs."""
    problem_type: ProblemType | None = None
    """How a head's outputs are read: softmax, a sigmoid each, or as they are."""

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)


class AdapterRef(msgspec.Struct, frozen=True):
    """Which weights a request uses: resolved once, held until the request ends.

    `tenant` is whose adapter it is, and `task` its name to who asks: `acme/sentiment` where it is shared by `acme`.
    """

    tenant: str
    task: str
    version: int
    digest: str
    method: Method
    virtual_tokens: int
    parts: tuple[AdapterRef, ...] = ()
    """Of a combination: its versions in order. `task` and `digest` are then theirs, joined, and `version` is 0."""


GrammarKind = Literal["json_schema", "regex", "choice", "grammar"]


class Grammar(msgspec.Struct, frozen=True, array_like=True):
    """What a reply has to look like, whole: a JSON schema's document, a match of a regular expression, one of a JSON
    list of strings, or what a grammar (Lark's notation, or GBNF's) derives."""

    kind: GrammarKind
    text: str
    param: str = "structured_outputs"
    """The request's field that says so, for errors."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is chosen. Field names and meanings are the HTTP contract's (OpenAI's and vLLM's)."""

    max_tokens: int = 64
    min_tokens: int = 0
    ignore_eos: bool = False
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    """None: none wanted. k ≥ 0: the chosen token's, and the k likeliest."""
    grammar: Grammar | None = None
    """No token is chosen that this does not allow, and no end before it is whole."""

    @property
    def needs_history(self) -> bool:
        """Whether the next token's choice depends on the tokens before it beyond the model's own way."""
        return bool(self.repetition_penalty != 1.0 or self.frequency_penalty or self.presence_penalty)

    @property
    def plain(self) -> bool:
        """Whether the likeliest token is taken and nothing else told of it (`min_tokens` aside)."""
        wishes = self.logprobs is not None or self.logit_bias or self.grammar is not None
        return self.temperature <= 0 and not wishes and not self.needs_history


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log probability of the chosen token, and the k likeliest (ids, log probabilities), likeliest first."""

    chosen: float
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


class Output(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """New tokens of one sequence. `cached_tokens` (of the input, virtual ones included) comes with the first.

    `number` is the worker's for the sequence: it names it where many rows' tokens travel as columns.
    """

    id: str
    number: int = -1
    tokens: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    queue_seconds: float = 0.0
    """Time from receipt to first being scheduled; comes with the first token."""
    prefill_seconds: float = 0.0
    """Time from there to the first token; comes with it."""
    preemptions: int = 0
    """How often the sequence was put back; comes with its end."""
    scores: bytes = b""
    """What was read of a sequence, with its end: float32 in this machine's byte order. A head's outputs, one for each
    label, row after row; or the log probability of each token scored."""
