"""Texts tokenized ahead: the same tokens as one by one, and letters behind a template's last words alone."""

import random

import pytest
from merging import merging_tokenizer
from tiny import CORPUS, build_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from calibtune.data.encoder import Encoder

TAILS = [
    "",
    "\n",
    " ",
    ">\n",
    "<|end|>\n<|assistant|>\n",
    "<|assistant|>",
    "<|assistant|> ",
    "<eos>",
    " <eos>",
    "<eos>\n\n",
]


def sentencepiece_like(scheme, **added):
    """A tokenizer that puts a blank before texts, as Llama 2's and Mistral's do, in one of their ways.

    With ``added`` arguments ``<eos>`` is a token that was added with these, and as text a part of larger ones.
    """
    core = Tokenizer(models.BPE())
    if scheme == "normalizer":
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    core.decoder = decoders.Metaspace()
    special = [token for token in ("<|end|>", "<|assistant|>", "<eos>") if not added or token != "<eos>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, min_frequency=1, show_progress=False)
    core.train_from_iterator([*CORPUS, "\n", "<|>", *["one? <eos>"] * 50], trainer)
    core.add_tokens([AddedToken("<eos>", **added)] if added else [])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>")


def with_added(*tokens, **options):
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([AddedToken(token, **options) for token in tokens], special_tokens=options.get("special"))
    return tokenizer


def not_split():
    tokenizer = build_tokenizer()
    tokenizer.split_special_tokens = True
    return tokenizer


TOKENIZERS = {
    "special tokens": build_tokenizer,
    "special tokens as text": not_split,
    "eats blanks": lambda: with_added("<eos>", special=True, normalized=False, rstrip=True, lstrip=True),
    "whole words": lambda: sentencepiece_like("always", normalized=False, single_word=True),
    "normalized": lambda: sentencepiece_like("normalizer", normalized=True),
    "one that ends in a letter": lambda: with_added("<|assistant|>\nA", special=True, normalized=False),
    "merging": lambda: merging_tokenizer(">\n", bos="<bos>"),
    "appending": lambda: merging_tokenizer(">\n", eos="<eos>"),
    **{f"blank before: {way}": lambda way=way: sentencepiece_like(way) for way in ("first", "always", "normalizer")},
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_texts_tokenized_ahead_have_the_tokens_that_each_has_by_itself(name):
    encoder, rng = Encoder(TOKENIZERS[name]()), random.Random(0)
    heads = [
        "<|end|>",
        "Which <eos> one?",
        *(" ".join(rng.sample(CORPUS, 3)) for _ in range(8)),
        "<|end|>" + CORPUS[0],
        "<|user|>\n",
    ]
    pairs = [(head + tail, more) for head in heads for tail in TAILS for more in ("A", " B", "\nC", "<eos>", "> D")]
    texts = {text for context, more in pairs for text in (context, context + more)} - {""}
    expected = {text: encoder.tok_encode(text) for text in texts}
    with encoder.ahead(pairs):
        assert {text: encoder.tok_encode(text) for text in texts} == expected


def test_letters_are_tokenized_behind_the_templates_last_words_alone(monkeypatch):
    encoder = Encoder(build_tokenizer())
    asked, call = [], type(encoder.tokenizer).__call__
    noted = lambda self, texts, **options: asked.extend(texts) or call(self, texts, **options)  # noqa: E731
    monkeypatch.setattr(type(encoder.tokenizer), "__call__", noted)
    contexts = [f"<|user|>\n{line} Which?<|end|>\n<|assistant|>\n" for line in CORPUS]
    with encoder.ahead((context, letter) for context in contexts for letter in "ABCD"):
        pass
    words = "<|assistant|>\n"
    assert sorted(asked) == sorted([*contexts, words, *(words + letter for letter in "ABCD")])
