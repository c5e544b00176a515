"""The ways a user would serve the same requests without softmux, in this process: PEFT's loops, transformers on one
padded batch, and its continuous batching. vLLM's are in `vllm_peers.py`."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from softmux.bench.loads.load import Load
from softmux.bench.loads.outcome import Outcome
from softmux.bench.loads.workload import Job
from softmux.errors import InvalidRequest

LOOPED = 16
"""Of the requests, as many go through the one-at-a-time loops: their rate does not depend on how many."""


def quiet_transformers() -> None:
    """Only what is measured is to be seen: no progress bars, and none of PEFT's notices on position ids, one a
    request."""
    import warnings

    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore")


def load_base(model: str, dtype: torch.dtype = torch.float32, device: str = "cpu", *, dummy: bool = False) -> Any:
    """The untouched module; `dummy` makes random weights of the folder's config.json, the same ones each time."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = AutoConfig.from_pretrained(model)
    loads_as = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    if not dummy:
        base: Any = loads_as.from_pretrained(model, dtype=dtype)
        return base.to(device).eval()
    torch.manual_seed(0)
    with torch.device(device):
        base = loads_as.from_config(config, dtype=dtype)
    return base.eval()


class Peer:
    """A target that takes all requests at the start. Replies come whole; a subclass says when each was there."""

    name = ""

    def run(self, load: Load) -> tuple[list[Outcome], None]:
        """Refuses arrivals that it can't follow."""
        if load.arrivals.paced:
            raise InvalidRequest(f"{self.name} takes requests all at once: leave --request-rate and --trace away.")
        began = time.perf_counter()
        ended = self.answer(load.jobs)
        return [
            Outcome(0.0, 0.0, at - began, prompt_tokens=len(job.ids), tokens=job.new_tokens)
            for job, at in zip(load.jobs, ended, strict=False)
        ], None

    def answer(self, jobs: Sequence[Job]) -> Iterable[float]:
        """When each reply was there, on `time.perf_counter`'s clock; of the first few jobs only, for a loop."""
        raise NotImplementedError

    def close(self) -> None:
        """Gives up what it holds."""


class PaddedBatch(Peer):
    """`generate` of the bare model on all rows, left-padded to one batch."""

    name = "transformers, padded batch, bare"

    def __init__(self, base: Any) -> None:
        self._base = base

    def answer(self, jobs: Sequence[Job]) -> list[float]:
        _generate(self._base, jobs)
        return [time.perf_counter()] * len(jobs)


class GenerateBatch(Peer):
    """transformers' continuous batching, of the bare model: it knows no soft prompts.

    Its cache is as large as the requests need. Left to itself it takes most of the free memory, which another engine on
    the same GPU wants too, and which it fills before it begins: minutes on a CPU.
    """

    name = "transformers, generate_batch, bare"

    def __init__(self, base: Any) -> None:
        from transformers import GenerationConfig

        self._base = base
        self._on_cpu = next(base.parameters()).device.type == "cpu"
        self._settings = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)

    def answer(self, jobs: Sequence[Job]) -> list[float]:
        from transformers.generation import ContinuousBatchingConfig

        most = max(job.new_tokens for job in jobs)
        cache = ContinuousBatchingConfig(max_batch_tokens=512 if self._on_cpu else None)
        cache.num_blocks = sum(-(-(len(job.ids) + most) // cache.block_size) for job in jobs)
        found = self._base.generate_batch(
            [list(job.ids) for job in jobs],
            generation_config=self._settings,
            continuous_batching_config=cache,
            max_new_tokens=most,
        )
        ended = time.perf_counter()
        made = [len(output.generated_tokens) for output in found.values()]
        if made != [most] * len(jobs):
            raise RuntimeError(f"{self.name} made {sum(made)} tokens for {len(jobs)} requests of {most}")
        return [ended] * len(jobs)


class _Loop(Peer):
    """One row at a time, each with its adapter's model."""

    def model(self, task: int) -> Any:
        raise NotImplementedError

    def __init__(self, base: Any) -> None:
        self._base = base

    def answer(self, jobs: Sequence[Job]) -> Iterable[float]:
        for job in jobs[:LOOPED]:
            _generate(self._base if job.task is None else self.model(job.task), [job])
            yield time.perf_counter()


class LoadEach(_Loop):
    """`PeftModel.from_pretrained` for each request."""

    name = "PEFT, from_pretrained each"

    def __init__(self, base: Any, folders: Sequence[Path]) -> None:
        super().__init__(base)
        self._folders = folders

    def model(self, task: int) -> Any:
        from peft import PeftModel

        return PeftModel.from_pretrained(copy.copy(self._base), str(self._folders[task])).eval()


class SetAdapter(_Loop):
    """All adapters loaded once; `set_adapter` for each request.

    PEFT refuses to load prompt methods of different types into one model, so there is one model for each type, over
    the same base.
    """

    name = "PEFT, set_adapter"

    def __init__(self, base: Any, folders: Sequence[Path]) -> None:
        from peft import PeftConfig, PeftModel

        super().__init__(base)
        models: dict[str, Any] = {}
        self._models: list[Any] = []
        for number, folder in enumerate(folders):
            kind = str(PeftConfig.from_pretrained(str(folder)).peft_type)
            name = f"task-{number}"
            if kind in models:
                models[kind].load_adapter(str(folder), adapter_name=name)
            else:
                models[kind] = PeftModel.from_pretrained(copy.copy(base), str(folder), adapter_name=name)
            self._models.append(models[kind])

    def model(self, task: int) -> Any:
        model = self._models[task]
        model.set_adapter(f"task-{task}")
        return model.eval()


def _generate(model: Any, jobs: Sequence[Job]) -> None:
    """The jobs' rows as one batch, padded on the left, as many new tokens each as the longest reply has."""
    device = next(model.parameters()).device
    width, new_tokens = max(len(job.ids) for job in jobs), max(job.new_tokens for job in jobs)
    ids = torch.tensor([[0] * (width - len(job.ids)) + list(job.ids) for job in jobs], device=device)
    mask = torch.tensor([[0] * (width - len(job.ids)) + [1] * len(job.ids) for job in jobs], device=device)
    with torch.inference_mode():
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
    if device.type == "cuda":
        torch.cuda.synchronize(device)


PEERS: dict[str, Callable[[Any, Sequence[Path]], Peer]] = {
    "padded": lambda base, folders: PaddedBatch(base),
    "generate_batch": lambda base, folders: GenerateBatch(base),
    "set_adapter": SetAdapter,
    "from_pretrained": LoadEach,
}
"""By name: makes the peer of a base model and the adapters' folders."""
