"""Which of the fast paths this model and machine take: each is proved by the self-test, and left out where it fails."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable

import torch

from softmux.engine.attention.base import AttentionBackend
from softmux.engine.attention.torch_sdpa import TorchAttention
from softmux.engine.encoder import PackedEncoder
from softmux.engine.prepacked import Prepacked
from softmux.engine.runner import ModelRunner
from softmux.engine.selftest import self_test
from softmux.engine.ways import Path
from softmux.errors import SelfTestFailed
from softmux.types import Family, ModelSpec

log = logging.getLogger(__name__)


def best_backend(device: torch.device, asked: str = "auto", family: Family = "decoder") -> type[AttentionBackend]:
    """The backend of that name. `auto`: Triton on a CUDA device where it is installed, torch elsewhere, and for an
    encoder-decoder.

    Raises `SelfTestFailed`, in words, where what was asked for can't run here.
    """
    if family == "encoder-decoder":
        if asked not in ("auto", "torch"):
            raise SelfTestFailed(f"--attention-backend {asked} runs no encoder-decoder: use auto")
        return TorchAttention
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


def prove(runner: ModelRunner, spec: ModelSpec, step_tokens: int) -> None:
    """Self-tests the unmodified module, then each faster way of running it that this model allows. A step has
    `step_tokens` at most.

    Raises `SelfTestFailed` only for the module itself; a fast path that fails is left out and counted, and the log says
    so.
    """
    runner.ways.attention = runner.backend.name
    with runner.ways.proof():
        self_test(runner, spec)
    if runner.device.type == "cpu":
        _prepack(runner, spec)
    if isinstance(runner.model, PackedEncoder) and (through := runner.model.through) is not None:
        attempt(runner, spec, "encoder", through.attach, through.detach)
    if runner.backend.name == "triton":
        _fuse(runner, spec, step_tokens)


def attempt(
    runner: ModelRunner, spec: ModelSpec, path: Path, take: Callable[[], object], leave: Callable[[], object]
) -> bool:
    """Takes a fast path and self-tests it; where either raises, leaves it, counts it and goes on without."""
    failed: Exception | None = None
    try:
        with runner.ways.proof():
            take()
            self_test(runner, spec)
    except Exception as error:
        failed = error
    if runner.model.ranks is not None:
        failed = runner.model.ranks.judge(failed)
    if failed is None:
        return True
    log.warning("the fast path “%s” is left out: %s", path, failed)
    leave()
    runner.forget_rows()
    runner.ways.left(path)
    return False


def _prepack(runner: ModelRunner, spec: ModelSpec) -> None:
    prepacked = Prepacked(runner.model.module)
    if attempt(runner, spec, "prepacked", prepacked.swap, prepacked.undo):
        prepacked.keep()
        runner.ways.layers = "prepacked"


def _fuse(runner: ModelRunner, spec: ModelSpec, step_tokens: int) -> None:
    from softmux.engine.attention.triton_paged import TritonAttention
    from softmux.engine.fast_deltas import fuse_deltas
    from softmux.engine.fused import FusedDecoder
    from softmux.engine.graphs import DecodeGraphs
    from softmux.engine.kernels.argmax import argmax
    from softmux.engine.kernels.step import begin_step
    from softmux.engine.mixed_graphs import MixedGraphs
    from softmux.engine.products import Products

    assert isinstance(runner.backend, TritonAttention)
    products = Products()
    try:
        fused = FusedDecoder.of(runner.model, runner.pool, runner.backend, products)
    except Exception as error:
        log.warning("the fast path “fused” is left out: %s", error)
        runner.ways.left("fused")
        return
    if fused is None:
        log.info("%s runs as transformers wrote it: no fused layers are known for it", spec.architecture)
        return
    ranks = runner.model.ranks
    if ranks is not None:
        fused.take_normed_sums(ranks)
    if not attempt(runner, spec, "fused", lambda: runner.take(fused=fused), runner.leave_fast_paths):
        return
    measure = functools.partial(products.measure, fused.products, runner.model.dtype, most=step_tokens)
    if attempt(runner, spec, "products", measure, products.forget):
        runner.ways.products = "measured"
    graphs = DecodeGraphs(
        lambda inputs, table, last_tokens: begin_step(inputs, table, last_tokens, fused.embedding),
        lambda embeddings, positions, slots: fused.forward(embeddings, positions, slots, None),
        argmax,
        runner.backend,
        table=runner.table,
        last_tokens=runner.last_tokens,
        spare_slot=runner.pool.spare,
        max_rows=runner.max_rows,
    )

    def capture() -> None:
        missing = graphs.capture()
        for _ in missing:
            runner.ways.left("graph")
        runner.take(fused=fused, graphs=graphs)
        runner.ways.graphs = "some" if missing else "all"

    if attempt(runner, spec, "graph", capture, lambda: runner.take(fused=fused)) and ranks is None:
        mixed = MixedGraphs(
            fused.forward,
            argmax,
            runner.backend,
            table=runner.table,
            last_tokens=runner.last_tokens,
            spare_slot=runner.pool.spare,
            embedding=fused.embedding,
            vocabulary=spec.vocab_size,
            max_rows=runner.max_rows,
            max_tokens=step_tokens,
        )

        def capture_mixed() -> None:
            for _ in mixed.capture():
                runner.ways.left("mixed_graph")
            runner.mixed = mixed

        def leave_mixed() -> None:
            runner.mixed = None

        attempt(runner, spec, "mixed_graph", capture_mixed, leave_mixed)
    if runner.deltas is not None:
        fuse_deltas(runner, runner.deltas, fused)
