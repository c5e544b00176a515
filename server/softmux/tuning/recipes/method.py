"""What a recipe may learn: its section `[method]`, a class for each `kind`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from softmux.errors import InvalidAdapter
from softmux.formats.template import Template

Init = Literal["text", "sampled", "labels", "random"]


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


AUTO = "auto"
OWN_INITS: tuple[str, ...] = get_args(Init)


class _Begun(Closed):
    """What the numbers may begin from: those of a published adapter."""

    init_from: Annotated[str, Field(pattern=r"\S")] | None = None
    """A published adapter of the same base to begin from: `task`, `task@2` or `owner/task` of a registry, a folder
    (`./…`, `../…` or `/…`, from the recipe's), or `auto`: the best of the registry's on a few validation rows."""
    residual: bool = False
    """With `init_from`: what it has stays as it is, what is learned is added to it, and both are folded in the end."""

    @model_validator(mode="after")
    def _residual_over_something(self) -> _Begun:
        if self.residual and self.init_from is None:
            raise ValueError("residual is over what init_from names: name it")
        return self


class _BegunVectors(_Begun):
    residual_rank: Annotated[int, Field(ge=1, le=4096)] | None = None
    """With `residual`: the rank of what is added, as a matrix of all learned numbers; by default it is free."""

    @model_validator(mode="after")
    def _rank_of_a_residual(self) -> _BegunVectors:
        if self.residual_rank is not None and not self.residual:
            raise ValueError("residual_rank goes with residual = true, and only with it")
        return self


def _no_init_from(said: Any, kind: str, instead: str) -> Any:
    if isinstance(said, dict) and "init_from" in said:
        raise ValueError(f"{kind} can't begin from an adapter: {instead}")
    return said


class PromptTuning(_BegunVectors):
    """Vectors in front of the input (arXiv 2104.08691)."""

    kind: Literal["prompt_tuning"]
    virtual_tokens: Annotated[int, Field(ge=1, le=4096)]
    """How many vectors are learned."""
    init_text: str | None = None
    """The text whose tokens' embeddings they begin as, repeated or cut to their number."""
    init: Init | None = None
    """What they begin as: `text` is `init_text`, `sampled` random tokens' embeddings, `labels` those of the words in
    `labels`, repeated, `random` normal noise. By default the text where there is one, else sampled."""

    @property
    def begins(self) -> Init:
        return self.init or ("text" if self.init_text else "sampled")

    @model_validator(mode="after")
    def _text_for_text(self) -> PromptTuning:
        if self.init == "text" and not self.init_text:
            raise ValueError('init = "text" needs init_text')
        return self


class PTuning(Closed):
    """Vectors that an encoder makes (arXiv 2103.10385): in front of the input, or where the `template` puts them."""

    kind: Literal["p_tuning"]
    virtual_tokens: Annotated[int, Field(ge=1, le=4096)]
    """How many vectors are learned; with a template, the sum of its `{p:N}`."""
    encoder: Literal["MLP", "LSTM"] = "MLP"
    """What makes the vectors while they are learned; folded away afterwards."""
    encoder_hidden_size: Annotated[int, Field(ge=1)] | None = None
    """The width of what makes them; by default the base's."""
    template: str | None = None
    """Text with `{p:N}` for N learned tokens and one `{slot}` for the row's prompt; by default they go in front."""

    @model_validator(mode="before")
    @classmethod
    def _vectors_of_an_encoder(cls, said: Any) -> Any:
        instead = 'an encoder makes its vectors. kind = "prompt_tuning" can, from P-tuning\'s as well'
        return _no_init_from(said, "p_tuning", instead)

    @model_validator(mode="after")
    def _template_fits(self) -> PTuning:
        if self.template is None:
            return self
        try:
            template = Template.parse(self.template)
            template.check("p_tuning", self.virtual_tokens)
        except InvalidAdapter as error:
            raise ValueError(error.message) from error
        if len(template.slots) != 1:
            raise ValueError("a row's prompt fills the template's slot, so it must have exactly one")
        return self


class _Prefix(_BegunVectors):
    virtual_tokens: Annotated[int, Field(ge=1, le=4096)]
    """How many keys and values are learned in every layer."""
    projection: bool = True
    """Whether they are made by a two-layer MLP while they are learned; folded away afterwards."""
    encoder_hidden_size: Annotated[int, Field(ge=1)] | None = None
    """The width of what makes them; by default the base's."""

    @property
    def projected(self) -> bool:
        """Numbers that begin from others' are learned directly: no MLP makes just these."""
        return self.projection and self.init_from is None

    @model_validator(mode="after")
    def _no_projection_onto_others(self) -> _Prefix:
        if self.init_from is not None and self.projection and "projection" in self.model_fields_set:
            raise ValueError("what begins from an adapter is learned directly: leave projection out, or set it false")
        return self


class PrefixTuning(_Prefix):
    """Keys and values of every layer (arXiv 2101.00190), trained through a two-layer MLP where `projection` is on."""

    kind: Literal["prefix_tuning"]


class PTuningV2(Closed):
    """A prefix of every layer under a head that classifies (arXiv 2110.07602), on an encoder. `pooler`: what stands
    between the last layer and a sequence's head is trained, too, instead of taken from the base."""

    kind: Literal["p_tuning_v2"]
    virtual_tokens: Annotated[int, Field(ge=1, le=4096)]
    """How many keys and values are learned in every layer."""
    head: Literal["sequence", "token"] = "sequence"
    """Whether texts are classified, or each of their words."""
    pooler: bool = False
    """Whether the layer before a sequence's head is trained, too."""
    projection: bool = False
    """Whether they are made by a two-layer MLP while they are learned; folded away afterwards."""
    encoder_hidden_size: Annotated[int, Field(ge=1)] | None = None
    """The width of what makes them; by default the base's."""

    @model_validator(mode="before")
    @classmethod
    def _under_a_head(cls, said: Any) -> Any:
        return _no_init_from(said, "p_tuning_v2", "its head is this task's own. Methods that generate can")


class _LowRank(Closed):
    rank: Annotated[int, Field(ge=1, le=1024)]
    """Of the update."""
    alpha: Annotated[float, Field(gt=0)]
    """The update is scaled by alpha / rank."""
    target_modules: list[str] | None = None
    """Names of the linear modules that are updated; by default those that PEFT knows for the architecture."""


class Lora(_LowRank, _Begun):
    """Updates of low rank to the base's linear modules (arXiv 2106.09685)."""

    kind: Literal["lora"]


class LoraPrefixTuning(_LowRank, _Prefix):
    """A LoRA and a prefix that are trained together and served together: a pair of PEFT adapters, one folder."""

    kind: Literal["lora+prefix_tuning"]


MethodRecipe = Annotated[
    PromptTuning | PTuning | PrefixTuning | PTuningV2 | Lora | LoraPrefixTuning, Field(discriminator="kind")
]
