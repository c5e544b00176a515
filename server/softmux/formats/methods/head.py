"""Classification heads, as PEFT saves them whole beside an adapter (`modules_to_save`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from softmux.errors import InvalidAdapter
from softmux.formats.config import CONFIG_FILE, AdapterConfig, invalid_field
from softmux.formats.methods.encoded import Tensors
from softmux.formats.parts import Activation, Dense, HeadPart, Norm
from softmux.formats.softmux_json import SOFTMUX_FILE
from softmux.formats.tensors import Tensor, invalid_tensor
from softmux.types import BaseHead, HeadKind, ModelSpec, ProblemType

_HEAD = re.compile(
    r"base_model\.(?:model\.)?(?P<module>(?:[a-z0-9_]+\.)?pooler\.dense|pre_classifier|classifier\.dense"
    r"|classifier\.out_proj|classifier|score|head\.dense|head\.norm)(?:\.modules_to_save(?:\.default)?)?\.(?P<what>weight|bias)"
)


@dataclass(frozen=True, slots=True)
class _Build:
    """How a kind of base classifies: the module before the output and its activation, the norm behind that, whether the
    base has these too (BERT's pooler; else the folder must hold them), and what the output's module is called."""

    dense: str | None = None
    activation: Activation = "tanh"
    from_base: bool = False
    output: tuple[str, ...] = ("classifier", "score")
    norm: str | None = None

    @property
    def saved_by(self) -> str:
        """What PEFT must be told to save."""
        return (self.dense or "").partition(".")[0]


_IN_CLASSIFIER = ("classifier.out_proj",)
_SEQUENCE: Mapping[str, _Build] = MappingProxyType(
    {
        "bert": _Build("pooler.dense", from_base=True),
        "roberta": _Build("classifier.dense", output=_IN_CLASSIFIER),
        "xlm-roberta": _Build("classifier.dense", output=_IN_CLASSIFIER),
        "camembert": _Build("classifier.dense", output=_IN_CLASSIFIER),
        "electra": _Build("classifier.dense", "gelu", output=_IN_CLASSIFIER),
        "distilbert": _Build("pre_classifier", "relu"),
        "deberta-v2": _Build("pooler.dense", "gelu"),
        "modernbert": _Build("head.dense", "gelu", from_base=True, norm="head.norm"),
    }
)
_PLAIN = _Build()
_TOKEN: Mapping[str, _Build] = MappingProxyType(
    dict.fromkeys(_SEQUENCE, _PLAIN) | {"modernbert": _SEQUENCE["modernbert"]}
)
_ACTIVATIONS: Mapping[str, Activation] = MappingProxyType({"tanh": "tanh", "gelu": "gelu", "relu": "relu"})
_EPSILON = 1e-5


def split_head(tensors: Tensors) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(a head's tensors, by `module.weight` and `module.bias`, every other tensor by its name)."""
    head: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = _HEAD.fullmatch(name)
        if match is None:
            rest[name] = tensor
            continue
        module = "pooler.dense" if match["module"].endswith("pooler.dense") else match["module"]
        key = f"{module}.{match['what']}"
        if key in head:
            raise invalid_tensor(name, "it is there under two names; send it once.")
        head[key] = tensor
    return head, rest


def read_head(
    config: AdapterConfig, tensors: Mapping[str, Tensor], said: list[str] | dict[str, str] | None, spec: ModelSpec
) -> HeadPart:
    """The head in `tensors` (`split_head`'s); `said` are softmux.json's labels. Raises `InvalidAdapter`."""
    kind: HeadKind = "sequence" if config.task_type == "SEQ_CLS" else "token"
    build = _build(kind, spec)
    left = dict(tensors)
    dense = _dense(build, left, spec, saved=build.saved_by in (config.modules_to_save or ()))
    module = next((name for name in build.output if f"{name}.weight" in left), None)
    if module is None:
        raise invalid_tensor(
            f"base_model.{build.output[0]}.weight",
            f"it is missing: a {config.task_type} adapter on {spec.model_id} holds its head; train it with PEFT's "
            "task type, which saves the head.",
        )
    weight = left.pop(f"{module}.weight")
    width = dense.weight.shape[0] if dense is not None else spec.hidden_size
    if len(weight.shape) != 2 or weight.shape[0] < 1 or weight.shape[1] != width:
        raise invalid_tensor(
            weight.name, f"its shape is {list(weight.shape)}, and a head on this base needs [labels, {width}]."
        )
    count = weight.shape[0]
    bias = left.pop(f"{module}.bias", None)
    if bias is not None:
        _expect(bias, (count,))
    elif spec.family != "decoder" or kind == "token":  # only a decoder's `score` of a sequence has none
        raise invalid_tensor(f"base_model.{module}.bias", "it is missing; save the trained adapter again.")
    for tensor in left.values():
        raise invalid_tensor(tensor.name, f"it is no part of a {kind} head on {spec.model_id}; remove it.")
    labels = _labels(config, said, count)
    return HeadPart(
        head=kind,
        weight=weight.float32(),
        bias=bias.float32() if bias is not None else None,
        dense=dense,
        base_pooler=build.from_base and dense is None,
        labels=labels,
        problem_type=_problem(config, kind, count),
    )


def _build(kind: HeadKind, spec: ModelSpec) -> _Build:
    if spec.family == "decoder":
        return _PLAIN
    builds = _SEQUENCE if kind == "sequence" else _TOKEN
    if spec.model_type in builds:
        return builds[spec.model_type]
    raise InvalidAdapter(
        f"How {spec.model_id} ({spec.model_type or 'of unknown type'}) classifies is not known to this server: its "
        f"heads are served on decoders and on {', '.join(sorted(_SEQUENCE))}.",
        param=f"{CONFIG_FILE}: task_type",
    )


def _dense(build: _Build, left: dict[str, Tensor], spec: ModelSpec, *, saved: bool) -> Dense | None:
    """`saved`: the config says that PEFT was told to train and save it."""
    if build.dense is None:
        return None
    known, width = spec.base_head, spec.hidden_size
    taken = {name: left.pop(name, None) for name in _names(build)}
    if build.from_base and not saved and all(tensor is None for tensor in taken.values()):
        return None
    for name, tensor in taken.items():
        optional = build.norm is not None and name.endswith(".bias")
        if tensor is None and (not optional or _has_bias(name, build, known)):
            raise invalid_tensor(
                f"base_model.{name}",
                f"it is missing: {spec.model_type} has it between its last layer and the head, made anew for each "
                f"training; train with modules_to_save=['{build.saved_by}'], so that it is saved.",
            )
        if tensor is not None and known is not None and optional and not _has_bias(name, build, known):
            raise invalid_tensor(tensor.name, f"the config of {spec.model_id} says that it has none there; remove it.")
        if tensor is not None:
            _expect(tensor, (width, width) if name == f"{build.dense}.weight" else (width,))
    found = {name: tensor.float32() for name, tensor in taken.items() if tensor is not None}
    norm = None
    if build.norm is not None:
        eps = _EPSILON if known is None else known.eps
        norm = Norm(found[f"{build.norm}.weight"], found.get(f"{build.norm}.bias"), eps)
    weight, bias = found[f"{build.dense}.weight"], found.get(f"{build.dense}.bias")
    return Dense(weight, bias, _activation(build, spec), norm)


def _names(build: _Build) -> list[str]:
    modules = [module for module in (build.dense, build.norm) if module is not None]
    return [f"{module}.{what}" for module in modules for what in ("weight", "bias")]


def _has_bias(name: str, build: _Build, known: BaseHead | None) -> bool:
    """Whether that one is there, as the base's config says; what is not known is not asked for."""
    return known is not None and (known.norm_bias if name == f"{build.norm}.bias" else known.bias)


def _activation(build: _Build, spec: ModelSpec) -> Activation:
    if spec.base_head is None:
        return build.activation
    said = spec.base_head.activation
    if said not in _ACTIVATIONS:
        raise InvalidAdapter(
            f"{spec.model_id} has “{said}” between its last layer and the head (classifier_activation), and a saved "
            f"{build.saved_by} is served with {', '.join(sorted(_ACTIVATIONS))} alone; train it without "
            f"modules_to_save=['{build.saved_by}'], over the base's own.",
            param=f"{CONFIG_FILE}: modules_to_save",
        )
    return _ACTIVATIONS[said]


def _expect(tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise invalid_tensor(
            tensor.name, f"its shape is {list(tensor.shape)}, and the head on this base needs {list(shape)}."
        )


def _labels(config: AdapterConfig, said: list[str] | dict[str, str] | None, count: int) -> tuple[str, ...]:
    """One for each output: softmux.json's, else the config's `id2label`; a regression of one output needs none."""
    if isinstance(said, dict):
        raise InvalidAdapter(
            f"{SOFTMUX_FILE}: a map of labels to words is for tasks that generate; a head's labels are a list, in the "
            "order of its outputs.",
            param=f"{SOFTMUX_FILE}: labels",
        )
    if config.num_labels not in (None, count):
        raise invalid_field("num_labels", f"it is {config.num_labels}, and the head has {count} outputs.")
    if said is not None:
        if len(said) != count:
            raise InvalidAdapter(
                f"{SOFTMUX_FILE} names {len(said)} labels, and the head has {count} outputs; name one for each.",
                param=f"{SOFTMUX_FILE}: labels",
            )
        return tuple(said)
    if config.id2label is not None:
        if sorted(config.id2label) != sorted(map(str, range(count))):
            raise invalid_field("id2label", f"it must name the outputs 0 to {count - 1}, each once.")
        named = tuple(config.id2label[str(index)] for index in range(count))
        if len(set(named)) != count:
            raise invalid_field("id2label", "it gives two outputs one name.")
        return named
    if count == 1:
        return ("LABEL_0",)
    raise InvalidAdapter(
        f"Nothing says what the head's {count} outputs mean; add {SOFTMUX_FILE} with "
        '{"labels": ["…", "…"]} in their order, or id2label to the config.',
        param=f"{SOFTMUX_FILE}: labels",
    )


def _problem(config: AdapterConfig, kind: HeadKind, count: int) -> ProblemType:
    """As transformers decides where the config does not say."""
    said = config.problem_type
    if kind == "token" and said not in (None, "single_label_classification"):
        raise invalid_field("problem_type", f"“{said}” is for sequences; each token has one label.")
    if said == "single_label_classification" and count == 1:
        raise invalid_field(
            "problem_type", "one output can't choose between labels; it is a regression, or multi-label."
        )
    if said is not None:
        return said
    return "regression" if count == 1 and kind == "sequence" else "single_label_classification"
