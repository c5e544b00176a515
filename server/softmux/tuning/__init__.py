"""Tuning as Python: `tune([Task("sentiment", rows, PromptTuning(…))], open_base("model"))` ([docs](docs/tuning.md)).

What is public is named here, and loaded when it is asked for: nothing that only reads a recipe needs torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softmux.tuning.public import Tuned as Tuned
    from softmux.tuning.public import open_base as open_base
    from softmux.tuning.public import tune as tune
    from softmux.tuning.recipes.recipe import Lora as Lora
    from softmux.tuning.recipes.recipe import LoraPrefixTuning as LoraPrefixTuning
    from softmux.tuning.recipes.recipe import PrefixTuning as PrefixTuning
    from softmux.tuning.recipes.recipe import PromptTuning as PromptTuning
    from softmux.tuning.recipes.recipe import PTuning as PTuning
    from softmux.tuning.recipes.recipe import PTuningV2 as PTuningV2
    from softmux.tuning.recipes.recipe import Train as Train
    from softmux.tuning.starts.library import RegistryLibrary as RegistryLibrary
    from softmux.tuning.starts.library import ServerLibrary as ServerLibrary
    from softmux.tuning.tasks.task import Task as Task
    from softmux.tuning.training.together import Together as Together

_PLACES = {
    "Task": "tasks.task", "Tuned": "public", "open_base": "public", "tune": "public", "Together": "training.together",
    "Train": "recipes.recipe", "PromptTuning": "recipes.recipe", "PTuning": "recipes.recipe",
    "PrefixTuning": "recipes.recipe", "Lora": "recipes.recipe", "LoraPrefixTuning": "recipes.recipe",
    "PTuningV2": "recipes.recipe", "ServerLibrary": "starts.library", "RegistryLibrary": "starts.library",
}  # fmt: skip

__all__ = ["Lora", "LoraPrefixTuning", "PTuning", "PTuningV2", "PrefixTuning", "PromptTuning", "RegistryLibrary",
           "ServerLibrary", "Task", "Together", "Train", "Tuned", "open_base", "tune"]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"softmux.tuning.{_PLACES[name]}"), name)
