"""What PEFT makes: a prompt encoder beside a base, and a LoRA's layers in its modules, put there and taken out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from softmux.errors import InvalidRequest

try:
    from peft import PeftConfig, get_peft_model
    from peft.tuners.lora import LoraLayer
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("Tuning is built on PEFT: pip install 'softmux[tune]'.", name=error.name) from error

ADAPTER = "default"
"""What PEFT calls the adapter that it has made."""


def peft_model(model: Any, config: PeftConfig) -> Any:
    """PEFT's model over `model`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of options we set on purpose
        return get_peft_model(model, config)


def low_rank_model(model: Any, config: Any, backbone: Any, label: str) -> Any:
    """PEFT's model of a LoRA in the modules of `backbone`, the base called `label`: of `model`, or part of it.

    Raises `InvalidRequest` where its modules are not known, not there, not linear, the output head, of which a step
    computes the answers' places alone, or the pooler, which is no layer. The base is then as it was.
    """
    _check_linear(backbone, label, sorted(config.target_modules or ()))
    try:
        made = peft_model(model, config)
    except ValueError as error:
        raise InvalidRequest(
            f"PEFT knows no modules of {model.config.model_type} by default: name linear modules of {label} in "
            "method.target_modules, as its checkpoint calls them.",
            param="method.target_modules",
        ) from error
    pooler = getattr(backbone, "pooler", None)
    for outside, named in ((backbone.get_output_embeddings(), "output head"), (pooler, "pooler")):
        if outside is not None and any(isinstance(module, LoraLayer) for module in outside.modules()):
            made.unload()
            raise InvalidRequest(
                f"method.target_modules names the {named}, and a LoRA there is not tuned: leave it out, or name the "
                "modules by more of their path.",
                param="method.target_modules",
            )
    return made


def prompt_encoder(peft: Any) -> torch.nn.Module | None:
    """That of PEFT's model; None where there is none, as for a LoRA alone."""
    encoders = getattr(peft, "prompt_encoder", None)
    found: torch.nn.Module | None = encoders[ADAPTER] if encoders is not None else None
    return found


def low_rank_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Those that are in `model`, by the names of the modules that they are in the place of."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def low_rank_values(
    layers: Iterable[tuple[str, Any]],
) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], float]:
    """Copies of their numbers, (a, b) by module, and the scaling of all. Raises `InvalidRequest` where they have
    several."""
    held = dict(layers)
    scalings = {float(layer.scaling[ADAPTER]) for layer in held.values()}
    if len(scalings) > 1:
        raise InvalidRequest("A LoRA is tuned with one rank and one alpha for all its modules.", param="method")
    pairs = {
        name: (layer.lora_A[ADAPTER].weight.detach().clone(), layer.lora_B[ADAPTER].weight.detach().clone())
        for name, layer in held.items()
    }
    return pairs, next(iter(scalings), 1.0)


@torch.no_grad()
def put_parts(
    soft: torch.nn.Module | None, layers: Iterable[tuple[str, Any]], values: Mapping[str, torch.Tensor]
) -> None:
    """Writes what was learned, by `Start`'s names, into a prompt encoder and a LoRA's layers."""
    if soft is not None:
        for name, parameter in soft.named_parameters():
            parameter.copy_(values[f"soft.{name}"])
    for name, layer in layers:
        layer.lora_A[ADAPTER].weight.copy_(values[f"a.{name}"])
        layer.lora_B[ADAPTER].weight.copy_(values[f"b.{name}"])


def _check_linear(backbone: Any, label: str, names: Sequence[str]) -> None:
    """Raises `InvalidRequest` where one of the names is not of linear modules alone. PEFT sees to it only while it puts
    its layers in, and lets a name that is of nothing pass beside others."""
    modules = dict(backbone.named_modules())
    linear = {name for name, module in modules.items() if isinstance(module, torch.nn.Linear | Conv1D)}
    for wanted in names:
        found = {name for name in modules if name == wanted or name.endswith(f".{wanted}")}
        if found and found <= linear:
            continue
        head = backbone.get_output_embeddings()
        known = sorted({name.rpartition(".")[2] for name in linear if modules[name] is not head})
        raise InvalidRequest(
            f"{label} has no linear module {wanted}{', but another of that name' if found else ''}: name linear "
            f"modules in method.target_modules, as its checkpoint calls them ({', '.join(known)}).",
            param="method.target_modules",
        )
