from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import BertConfig

from softmux.errors import InvalidRequest
from softmux.tuning.recipes.recipe import read_recipe
from softmux.tuning.run import tune


def test_a_recipe_says_what_it_needs_and_the_rest_has_defaults(write_recipe: Callable[..., Path]) -> None:
    recipe = read_recipe(write_recipe())
    assert (recipe.task, recipe.base, recipe.method.kind) == ("toy", "demo", "prompt_tuning")
    assert recipe.train.warmup_steps == 5
    assert recipe.train.end_token


@pytest.mark.parametrize(
    ("method", "extra", "field"),
    [
        ('kind = "prompt_tuning"', "", "method.prompt_tuning.virtual_tokens"),
        ('kind = "lottery"\nvirtual_tokens = 2', "", "method"),
        ("prompt_tuning", "surprise = 1\n", "surprise"),
        ('kind = "p_tuning"\nvirtual_tokens = 3\ntemplate = "{p:2} of {x}"', "", "method.p_tuning"),
        ('kind = "p_tuning"\nvirtual_tokens = 2\ntemplate = "{p:2} of {x} in {y}"', "", "method.p_tuning"),
        ('kind = "p_tuning"\nvirtual_tokens = 2\ntemplate = "{p:2} of {x"', "", "method.p_tuning"),
    ],
)
def test_a_wrong_field_is_named(write_recipe: Callable[..., Path], method: str, extra: str, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_recipe(write_recipe(method, extra=extra))
    assert caught.value.param == field
    assert field in caught.value.message


def test_a_missing_or_broken_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="There is no recipe at"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("task = ")
    with pytest.raises(InvalidRequest, match="is no TOML"):
        read_recipe(tmp_path / "broken.toml")


def test_an_encoder_is_not_tuned_to_generate_and_that_is_said(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    BertConfig(architectures=["BertModel"]).save_pretrained(tmp_path / "bert")
    recipe = write_recipe(extra=f'base = "{tmp_path / "bert"}"\n')
    said = (
        r'is an encoder \(bert\), and prompt_tuning is tuned on decoders and encoder-decoders\. .* kind = "p_tuning_v2"'
    )
    with pytest.raises(InvalidRequest, match=said):
        tune(recipe, tmp_path / "out", "cpu")
    assert not (tmp_path / "out").exists()
