"""A WordPiece tokenizer as BERT's, the same in every process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from support.tokenizers_made import TEXT

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def word_piece(vocabulary: int = 300) -> Tokenizer:
    """Its pieces are the text's letters, at the beginning of a word and within, then its words, as far as there is
    room. They are not learned: a trainer of this kind breaks ties anew in every process, and a random model over other
    ids is another model."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    plain = [tokenizer.normalizer.normalize_str(text) for text in TEXT]
    words = sorted({word for text in plain for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)})
    letters = sorted({letter for word in words for letter in word})
    pieces = dict.fromkeys([*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *words])
    vocab = {piece: number for number, piece in enumerate(list(pieces)[:vocabulary])}
    tokenizer.model = models.WordPiece(vocab=vocab, unk_token="[UNK]")
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]"
    )
    fast.save_pretrained(folder)
    return fast
