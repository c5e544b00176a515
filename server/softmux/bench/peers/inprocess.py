"""`softmux bench offline`: a load on the engine in this process, beside other ways to serve it."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from softmux.bench.loads.load import Load, Plan, tokenized
from softmux.bench.loads.options import add_load_options, check_options, parse_settings, plan_of, publish, watcher
from softmux.bench.loads.race import Contender, closing, run_race
from softmux.bench.loads.report import wide_console
from softmux.bench.loads.slo import parse_slo
from softmux.bench.loads.workload import random_prompt_adapter, write_adapter
from softmux.bench.peers.offline import OfflineEngine, OfflineTarget
from softmux.bench.peers.peers import PEERS, load_base, quiet_transformers
from softmux.bench.peers.vllm_peers import NAMES as VLLM
from softmux.bench.peers.vllm_peers import Vllm, VllmEmbeds, VllmLora, vllm_missing
from softmux.engine.engine import pick_device, pick_dtype
from softmux.engine.packed import PackedModel
from softmux.errors import InvalidRequest
from softmux.formats.folder import load_folder
from softmux.settings import Settings


@dataclass(frozen=True, slots=True)
class Adapters:
    """The tasks' names and files. `folders` lays them out on disk, where a peer wants them there."""

    names: tuple[str, ...]
    read: Callable[[int], Mapping[str, bytes]]

    def files(self) -> Iterator[Mapping[str, bytes]]:
        return (self.read(number) for number in range(len(self.names)))

    def folders(self, scratch: Path) -> list[Path]:
        return [write_adapter(files, scratch / name) for name, files in zip(self.names, self.files(), strict=True)]


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    check_options(options)
    quiet_transformers()
    console = wide_console()
    settings = _settings(options, {})
    engine = OfflineEngine(settings, [], model=_dummy(options, settings))
    spec = engine.engine.spec
    adapters = _adapters(options, spec.hidden_size)
    engine.register(adapters.files())
    plan = _with_ids(plan_of(options, adapters.names, spec.vocab_size), settings.model)
    with tempfile.TemporaryDirectory() as scratch:
        own = OfflineTarget("softmux", engine)
        contenders = [Contender("softmux", own), *_compared(options, own, adapters)]
        peers = [
            Contender(name, target) for name, target in _peers(console, options, settings, adapters, Path(scratch))
        ]
        contenders += peers
        console.print(f"{spec.model_id} in {spec.dtype} on {spec.device}, {os.cpu_count()} CPUs")
        console.print(plan.words())
        with closing(contenders):
            race = run_race(
                plan, contenders, repeats=options.repeats, slo=parse_slo(options.goodput), watch=watcher(console)
            )
    about = {"model": spec.model_id, "dtype": spec.dtype, "device": spec.device}
    publish(console, race, plan, options, ["offline", *arguments], about)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="softmux bench offline", description=__doc__)
    parser.add_argument("--model", required=True, help="a folder in Hugging Face's layout, or a hub id")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument(
        "--load-format",
        choices=("auto", "dummy"),
        default="auto",
        help="dummy: random weights of the model's config.json",
    )
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--set", default="", metavar="NAME=VALUE,…", help="other settings of softmux serve")
    tasks = parser.add_mutually_exclusive_group()
    tasks.add_argument("--adapters", type=Path, metavar="DIR", help="a folder of adapters' folders: the tasks")
    tasks.add_argument("--tasks", type=int, default=16, metavar="N", help="as many random soft prompts (16)")
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="bare|NAME=VALUE,…",
        help="takes turns: the same prompts on the bare model, or an engine with other settings",
    )
    parser.add_argument(
        "--peers",
        default="",
        metavar="all|A,B,…",
        help=f"on the same requests, where installed: {', '.join((*PEERS, *VLLM))}",
    )
    parser.add_argument("--peer-memory", type=float, default=0.3, help="vLLM's share of the GPU's memory (0.3)")
    add_load_options(parser)
    return parser


def _settings(options: argparse.Namespace, more: Mapping[str, Any]) -> Settings:
    chosen: dict[str, Any] = {"model": options.model, "device": options.device, "dtype": options.dtype}
    chosen |= {"threads": options.threads, "max_waiting": 1 << 20}
    return settings_of(chosen, (parse_settings(options.set) if options.set else {}) | dict(more))


def settings_of(chosen: Mapping[str, Any], more: Mapping[str, Any]) -> Settings:
    """`chosen`, and `more` in its place. Raises `InvalidRequest` for what is no setting, or none of that value."""
    chosen = dict(chosen) | dict(more)
    if unknown := sorted(set(chosen) - set(Settings.model_fields)):
        raise InvalidRequest(f"There is no setting {', '.join(unknown)}: docs/settings.md lists them.", param="set")
    try:
        return Settings(**chosen)
    except ValidationError as error:
        what = error.errors()[0]
        raise InvalidRequest(f"{'.'.join(map(str, what['loc']))}: {what['msg']}.", param="set") from error


def _dummy(options: argparse.Namespace, settings: Settings) -> PackedModel | None:
    """The model with random weights, where these were asked for; None: the engine loads it."""
    if options.load_format != "dummy":
        return None
    device = pick_device(settings.device)
    module = load_base(settings.model, pick_dtype(settings.dtype, device), str(device), dummy=True)
    module.set_attn_implementation("eager")
    return PackedModel(module, None, Path(settings.model).name)


def _adapters(options: argparse.Namespace, hidden: int) -> Adapters:
    if options.adapters is None:
        names = tuple(f"task-{number:05d}" for number in range(options.tasks))
        return Adapters(names, lambda number: random_prompt_adapter(number, hidden))
    if not options.adapters.is_dir():
        raise InvalidRequest(f"There is no folder {options.adapters}.", param="adapters")
    folders = [path for path in sorted(options.adapters.iterdir()) if (path / "adapter_config.json").is_file()]
    if not folders:
        raise InvalidRequest(f"{options.adapters} holds no adapter's folder.", param="adapters")
    return Adapters(tuple(path.name for path in folders), lambda number: load_folder(folders[number]))


def _with_ids(plan: Plan, model: str) -> Plan:
    """The engine takes ids alone: a trace's texts are tokenized as a server would."""
    if not any(isinstance(line.prompt, str) for line in plan.trace):
        return plan
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    return tokenized(plan, lambda text: tokenizer(text)["input_ids"])


def _compared(options: argparse.Namespace, own: OfflineTarget, adapters: Adapters) -> Iterator[Contender]:
    for other in options.compare:
        if other == "bare":
            yield Contender("softmux, bare model", own, Load.bare)
        else:
            settings = _settings(options, parse_settings(other))
            engine = OfflineEngine(settings, adapters.files(), model=_dummy(options, settings))
            yield Contender(f"softmux, {other}", OfflineTarget(other, engine))


def _peers(
    console: Console, options: argparse.Namespace, settings: Settings, adapters: Adapters, scratch: Path
) -> Iterator[tuple[str, Any]]:
    """The peers asked for that can be had here; a line says why another can't."""
    known = (*PEERS, *VLLM)
    asked = known if options.peers == "all" else tuple(word for word in options.peers.split(",") if word)
    if unknown := sorted(set(asked) - set(known)):
        raise InvalidRequest(f"No such peer: {', '.join(unknown)}. There are {', '.join(known)}.", param="peers")
    if not asked:
        return
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device)
    base = load_base(settings.model, dtype, str(device), dummy=options.load_format == "dummy")
    folders: list[Path] = []
    for name in asked:
        if name in VLLM:
            if missing := vllm_missing():
                console.print(f"left out: {name}: {missing}", style="yellow")
                continue
            peer: Any = _vllm(name, options, settings, base, scratch, len(adapters.names))
        else:
            if name in ("set_adapter", "from_pretrained"):
                try:
                    import peft  # noqa: F401
                except ModuleNotFoundError:
                    console.print(f"left out: {name}: peft is not installed", style="yellow")
                    continue
                folders = folders or adapters.folders(scratch)
            peer = PEERS[name](base, folders)
        yield peer.name, peer


def _vllm(name: str, options: argparse.Namespace, settings: Settings, base: Any, scratch: Path, tasks: int) -> Vllm:
    common: dict[str, Any] = {"dtype": str(base.dtype).removeprefix("torch."), "memory": options.peer_memory}
    common["dummy"] = options.load_format == "dummy"
    if name == "vllm-embeds":
        return VllmEmbeds(settings.model, base.get_input_embeddings().weight.detach().cpu(), tasks, **common)
    if name == "vllm-lora":
        return VllmLora(settings.model, base, tasks, scratch / "loras", **common)
    return Vllm(settings.model, **common)
