"""Small tokenizers, trained in the test, of the kinds that decode differently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = [
    "The film was a gripping, beautiful piece; the ending dull and far too long.",
    "Größe, naïveté, Übermut: 東京は日本の首都です。 Привет, мир! 🎉🎊 déjà vu",
    "def answer(x):\n    return {'a': 1, \"b\": [2, 3]}\n\n",
] * 4
SPECIAL = ["<pad>", "<s>", "</s>"]
CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if message.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message.role) }}{% endif %}[{{ message.role }}] {{ message.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
CHAT_WITH_TOOLS = "{% if tools %}{{ tools | tojson }}\n{% endif %}" + CHAT.replace(
    "['system', 'user', 'assistant']", "['system', 'user', 'assistant', 'tool']"
)


def byte_level(vocabulary: int = 400) -> Tokenizer:
    """As GPT-2's and Llama 3's: bytes, merged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens([AddedToken("→step", special=False)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def sentencepiece_like(vocabulary: int = 400) -> Tokenizer:
    """As Llama 2's: words with ▁ before them, bytes where a character is unknown, the first space stripped."""
    alphabet = sorted({char for text in TEXT for char in text.replace(" ", "▁") if ord(char) < 0x250 or char == "▁"})
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {token: i for i, token in enumerate([*SPECIAL, *bytes_, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, fuse_unk=True, unk_token="<pad>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> Any:
    """Puts it into a model's folder, with a chat template; returns it as transformers' tokenizer."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=CHAT,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
    return fast
