"""By which ways steps run on this machine, how often each did, and how often a faster one had to be left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

Way = Literal["graph", "mixed_graph", "fused", "module"]
"""A CUDA graph of a step in which all rows decode; one of the fused layers in a small step of any rows; the fused
layers; the transformers module itself, over the attention backend."""
Path = Literal["graph", "mixed_graph", "fused", "products", "prepacked", "encoder", "loras"]
"""What may be left: its proof failed at load, a step had no graph of its size, or it raised in a step."""


@dataclass(slots=True)
class Ways:
    """Counted by the runner and by `fast.prove`; every one of these ways gives the same tokens."""

    steps: dict[Way, int] = field(default_factory=lambda: dict.fromkeys(get_args(Way), 0))
    fallbacks: dict[Path, int] = field(default_factory=lambda: dict.fromkeys(get_args(Path), 0))
    attention: str = ""
    layers: str = "module"
    graphs: str = "none"
    products: str = "library"
    proving: bool = False

    def ran(self, way: Way) -> None:
        self.steps[way] += 1

    def left(self, path: Path) -> None:
        self.fallbacks[path] += 1

    @contextlib.contextmanager
    def proof(self) -> Iterator[None]:
        """While a way is being proved, what raises is told rather than left, and steps are nobody's."""
        before, steps = self.proving, dict(self.steps)
        self.proving = True
        try:
            yield
        finally:
            self.proving = before
            self.steps = steps

    @property
    def in_use(self) -> dict[str, str]:
        """The labels of `fast_paths_info`."""
        return {
            "attention": self.attention,
            "layers": self.layers,
            "graphs": self.graphs,
            "products": self.products,
        }
