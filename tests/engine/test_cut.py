from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from softmux.engine.bases import check_sharded
from softmux.engine.host_adapter import HostAdapter
from softmux.engine.parallel.cut import Cut
from softmux.errors import SelfTestFailed
from softmux.formats.parts import LoraLayer, LoraPart, PrefixPart, PromptPart
from softmux.settings import Settings
from support.models import ARCHITECTURES, make_base


def cuts(size: int, **changed: int) -> list[Cut]:
    whole = {"heads": 8, "kv_heads": 4, "head_dim": 6, "inner": 40, "vocabulary": 97} | changed
    return [Cut(rank=rank, size=size, **whole) for rank in range(size)]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("name", ["q_proj", "gate_proj", "up_proj", "o_proj", "down_proj"])
def test_parts_of_a_weight_are_all_of_it_once(size: int, name: str) -> None:
    parts = [cut.part(f"model.layers.0.x.{name}") for cut in cuts(size)]
    assert all(part is not None for part in parts)
    units = [unit for part in parts if part for unit in range(part.begin, part.end)]
    assert units == list(range(48 if name[0] in "qo" else 40))


def test_queries_find_their_heads_of_keys_where_these_are_fewer_than_ranks() -> None:
    for size in (2, 4, 8):
        for cut in cuts(size, kv_heads=2):
            own = range(cut.rank * 8 // size, (cut.rank + 1) * 8 // size)
            first, end = cut.own_kv
            assert {head // 4 for head in own} == set(range(first, end))


def test_an_adapter_is_cut_as_the_weights_it_acts_on() -> None:
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Any:
        return torch.randn(shape, generator=draw).numpy()

    widths = {"q_proj": (30, 48), "k_proj": (30, 24), "o_proj": (48, 30), "down_proj": (40, 30), "lm_head": (30, 97)}
    layers = {name: LoraLayer(random(3, width), random(out, 3), 0.5) for name, (width, out) in widths.items()}
    parts = (LoraPart(layers), PromptPart(random(5, 30)), PrefixPart(random(2, 7, 4, 6), random(2, 7, 4, 6)))
    whole = HostAdapter.from_parts(parts, torch.float32)
    assert whole.delta is not None
    assert whole.prefix is not None
    owned = [cut.adapter(whole) for cut in cuts(2)]
    for name, (width, _) in widths.items():
        x, gained = torch.randn((4, width), generator=draw), []
        expected = x @ whole.delta.a(whole.delta.by_module[name]).t() @ whole.delta.b(whole.delta.by_module[name])
        for cut, own in zip(cuts(2), owned, strict=True):
            assert own.delta is not None
            update, part = own.delta.by_module[name], cut.part(name)
            given = x[:, part.begin : part.end] if part is not None and part.dim == 1 else x
            gained.append(given @ own.delta.a(update).t() @ own.delta.b(update))
        got = (
            sum(gained) if name in ("o_proj", "down_proj") else gained[0] if name == "lm_head" else torch.cat(gained, 1)
        )
        torch.testing.assert_close(got, expected)
    assert all(own.vectors is not None and torch.equal(own.vectors, whole.vectors) for own in owned)
    assert torch.equal(torch.cat([own.prefix for own in owned if own.prefix is not None], 3), whole.prefix)


def test_an_adapter_survives_the_way_to_another_rank() -> None:
    layer = LoraLayer(torch.randn((2, 6)).numpy(), torch.randn((8, 2)).numpy(), 1.0)
    sent = HostAdapter.from_parts(
        (LoraPart({"q_proj": layer}), PromptPart(torch.randn((3, 6)).numpy())), torch.bfloat16
    )
    came = HostAdapter.of_frames([memoryview(frame) for frame in sent.frames()])
    assert came.delta is not None
    assert sent.delta is not None
    assert came.delta.updates == sent.delta.updates
    assert torch.equal(came.delta.data, sent.delta.data)
    assert torch.equal(came.vectors, sent.vectors)
    assert came.prefix is None


@pytest.mark.parametrize(
    ("architecture", "settings", "words"),
    [
        ("llama", {"tensor_parallel": 3}, "--tensor-parallel takes 1, 2, 4 for this model"),
        ("phi3", {"tensor_parallel": 2}, "Phi3ForCausalLM runs in one process only: leave --tensor-parallel out"),
        ("llama", {"tensor_parallel": 2, "quantization": "fp8"}, "leave it or --tensor-parallel out"),
        ("nowhere", {"tensor_parallel": 2}, "there is no such folder"),
        ("hollow", {"tensor_parallel": 2}, "has no config that can be read"),
    ],
)
def test_what_cannot_be_dealt_out_is_refused_with_what_to_do(
    architecture: str, settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    if architecture in ARCHITECTURES:
        make_base(architecture, tmp_path / architecture)
    elif architecture == "hollow":
        (tmp_path / architecture).mkdir()
    with pytest.raises(SelfTestFailed, match=words):
        check_sharded(Settings(model=str(tmp_path / architecture), **settings))
