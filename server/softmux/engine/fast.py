"""Which of the fast paths this model and machine take: each is proved by the self-test, and left out where it fails."""

from __future__ import annotations

import importlib.util
import logging

import torch

from softmux.engine.attention.base import AttentionBackend
from softmux.engine.attention.torch_sdpa import TorchAttention
from softmux.engine.prepacked import Prepacked
from softmux.engine.runner import ModelRunner
from softmux.engine.selftest import self_test
from softmux.errors import SelfTestFailed
from softmux.types import ModelSpec

log = logging.getLogger(__name__)


def best_backend(device: torch.device, asked: str = "auto") -> type[AttentionBackend]:
    """The backend of that name. `auto`: Triton on a CUDA device where it is installed, torch elsewhere.

    Raises `SelfTestFailed`, in words, where what was asked for can't run here.
    """
    on_gpu = device.type == "cuda"
    has_triton = importlib.util.find_spec("triton") is not None
    if asked == "triton" and not (on_gpu and has_triton):
        raise SelfTestFailed(f"--attention-backend triton needs a CUDA device and Triton; {_lacks(on_gpu)}: use auto")
    if asked == "flashinfer":
        if not on_gpu or importlib.util.find_spec("flashinfer") is None:
            raise SelfTestFailed(
                f"--attention-backend flashinfer needs a CUDA device and flashinfer-python; {_lacks(on_gpu)}: use auto"
            )
        from softmux.engine.attention.flashinfer import FlashInferAttention

        return FlashInferAttention
    if asked != "torch" and on_gpu and has_triton:
        from softmux.engine.attention.triton_paged import TritonAttention

        return TritonAttention
    log.info("attention by torch: %s", "asked for" if asked == "torch" else _lacks(on_gpu))
    return TorchAttention


def _lacks(on_gpu: bool) -> str:
    return "it is not installed" if on_gpu else "the model runs on the CPU"


def prove(runner: ModelRunner, spec: ModelSpec) -> None:
    """Self-tests the unmodified module, then each faster way of running it that this model allows.

    Raises `SelfTestFailed` only for the module itself; a fast path that fails is left out, and the log says so.
    """
    self_test(runner, spec)
    if runner.device.type == "cpu":
        _prepack(runner, spec)
    if runner.backend.name == "triton":
        _fuse(runner, spec)


def _prepack(runner: ModelRunner, spec: ModelSpec) -> None:
    prepacked = Prepacked(runner.model.module)
    try:
        swapped = prepacked.swap()
        self_test(runner, spec)
    except Exception as error:
        log.warning("linear layers run as torch lays them out: %s", error)
        prepacked.undo()
        return
    prepacked.keep()
    log.info("%d linear layers are laid out for oneDNN", swapped)


def _fuse(runner: ModelRunner, spec: ModelSpec) -> None:
    from softmux.engine.attention.triton_paged import TritonAttention
    from softmux.engine.fused import FusedDecoder
    from softmux.engine.graphs import DecodeGraphs
    from softmux.engine.kernels.argmax import argmax
    from softmux.engine.products import Products

    assert isinstance(runner.backend, TritonAttention)
    products = Products()
    fused = FusedDecoder.of(runner.model, runner.pool, runner.backend, products)
    if fused is None:
        log.info("%s runs as transformers wrote it: no fused layers are known for it", spec.architecture)
        return
    runner.fused = fused
    try:
        products.measure(fused.weights, runner.model.dtype)
        self_test(runner, spec)
    except Exception as error:
        log.warning("fused layers are left out: %s", error)
        runner.fused = None
        return
    graphs = DecodeGraphs(
        lambda embeddings, positions, slots: fused.forward(embeddings, positions, slots, None),
        runner.model.embedding,
        runner.backend,
        argmax,
        table=runner.table,
        last_tokens=runner.last_tokens,
        spare_slot=runner.pool.spare,
        max_rows=runner.max_rows,
    )
    try:
        graphs.capture()
        runner.graphs = graphs
        self_test(runner, spec)
    except Exception as error:
        log.warning("CUDA graphs are left out: %s", error)
        runner.graphs = None
