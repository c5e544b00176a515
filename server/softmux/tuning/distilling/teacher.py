"""A teacher: the frozen base with a long prompt, which is text around a user's, or an adapter's vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from softmux.errors import InvalidRequest, SoftmuxError
from softmux.formats.folder import load_folder, parse_adapter
from softmux.formats.layout import Layout
from softmux.formats.parts import PromptPart
from softmux.inspection.base import describe
from softmux.tuning.bases.base import Base, source_of
from softmux.tuning.data.examples import BadData, Example, decode
from softmux.tuning.recipes.distillation import INPUT, Distillation
from softmux.tuning.voices.sampler import Sampler
from softmux.tuning.voices.voice import Voice


def teacher_of(recipe: Distillation, folder: Path, base: Base, cache: Path | None = None) -> Voice:
    """The recipe's teacher; paths are relative to `folder`. Raises `InvalidRequest` naming the field."""
    said = recipe.teacher
    if said.adapter is not None:
        return _of_adapter(recipe, folder / said.adapter, base, cache)
    text = said.text
    if said.file is not None:
        path = folder / said.file
        if not path.is_file():
            raise InvalidRequest(f"There is no file at {path}.", param="teacher.file")
        text = decode(path.read_bytes(), path.name)
        if text.count(INPUT) != 1:
            raise InvalidRequest(f"{path.name} must hold {INPUT} once, where a user's text goes.", param="teacher.file")
    assert text is not None
    return Voice(base, text=text)


def _of_adapter(recipe: Distillation, path: Path, base: Base, cache: Path | None) -> Voice:
    spec = describe(source_of(recipe, cache), fingerprints=True)
    try:
        adapter = parse_adapter(load_folder(path), spec)
    except SoftmuxError as error:
        raise InvalidRequest(f"The teacher {path} can't be read: {error.message}", param="teacher.adapter") from error
    (part, *others) = adapter.parts
    if others or not isinstance(part, PromptPart):
        raise InvalidRequest(
            f"The teacher {path} is a {adapter.manifest.method}; a teacher is prompt tuning or P-tuning, whose "
            "vectors go into the input.",
            param="teacher.adapter",
        )
    return Voice.of(base, Layout.of(adapter.manifest), adapter.parts)


def invented(recipe: Distillation, base: Base) -> list[str]:
    """`inputs.generate` different texts, sampled from the bare base: of each draw the first line that is not empty.

    Raises `InvalidRequest` where it does not make so many in eight times as many draws.
    """
    how, wanted = recipe.inputs, recipe.inputs.generate
    assert wanted is not None
    if base.task_type == "SEQ_2_SEQ_LM" and not how.instruction:
        raise InvalidRequest(
            f"{base.label} is an encoder-decoder, which goes on from nothing with nothing: say in inputs.instruction "
            "what an input is like, or give inputs.path.",
            param="inputs.instruction",
        )
    begin = tuple(base.encoder.encode(how.instruction, add_special_tokens=True)) if how.instruction else ()
    if not begin:
        first = base.tokenizer.bos_token_id
        begin = (base.end_id if first is None else int(first),)
    sampler = Sampler(how.temperature, recipe.train.seed, base.device)
    found: dict[str, None] = {}
    drawn = 0
    while len(found) < wanted and drawn < 8 * wanted:
        drawn += wanted
        for ids in Voice(base).answers([begin] * wanted, how.max_tokens, sampler):
            lines = [line.strip() for line in base.text(ids).splitlines() if line.strip()]
            if lines and "\ufffd" not in lines[0]:
                found.setdefault(lines[0])
    if len(found) < wanted:
        raise InvalidRequest(
            f"The base made {len(found)} different inputs of the {wanted} asked for, in {drawn} draws: ask for fewer, "
            "raise inputs.temperature, or give inputs.path.",
            param="inputs.generate",
        )
    return list(found)[:wanted]


def check_fits(base: Base, prompts: Sequence[Example], inputs: Sequence[tuple[int, ...]], max_tokens: int) -> None:
    """Raises `BadData` for a prompt whose input (the teacher's, by the same order) is with an answer longer than the
    base's context."""
    context = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
    for prompt, ids in zip(prompts, inputs, strict=True):
        length = base.context(len(ids), max_tokens)
        if context is not None and length > context:
            raise BadData(
                f"this input, the teacher's prompt and its answer of teacher.max_tokens = {max_tokens} take {length} "
                f"tokens, and the base's context is {context}: shorten one of them",
                file=prompt.file,
                row=prompt.row,
            )
