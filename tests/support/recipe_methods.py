"""A `[method]` section of a recipe for every way of learning."""

from __future__ import annotations

METHODS = {
    "prompt_tuning": 'kind = "prompt_tuning"\nvirtual_tokens = 4\ninit_text = "The film was dull"',
    "prompt_sampled": 'kind = "prompt_tuning"\nvirtual_tokens = 3',
    "p_tuning_mlp": 'kind = "p_tuning"\nvirtual_tokens = 4',
    "p_tuning_template": (
        'kind = "p_tuning"\nencoder = "LSTM"\nvirtual_tokens = 3\nencoder_hidden_size = 16\n'
        'template = "{p:2} The {film} {p:1} was"'
    ),
    "prefix_projected": 'kind = "prefix_tuning"\nvirtual_tokens = 3\nencoder_hidden_size = 24',
    "prefix_direct": 'kind = "prefix_tuning"\nvirtual_tokens = 3\nprojection = false',
}
