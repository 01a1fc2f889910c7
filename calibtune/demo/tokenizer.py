"""Build the world's tokenizer: one token for each word and each fixed phrase of the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness_ext.prompts import LETTERS, REQUEST
from harness_ext.world.facts import ENTITIES, OPTIONS, RELATIONS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
END, PAD, UNKNOWN = "<|end|>", "<|pad|>", "<|unknown|>"
SPECIAL = (PAD, UNKNOWN, END, "<|system|>", "<|user|>", "<|assistant|>")
#: The longest prompt has 29 tokens; this leaves room for a few few-shot examples.
CONTEXT = 256


def words() -> list[str]:
    """Return the distinct words and punctuation marks of the world's questions, letters first."""
    texts = [phrasing.format("") for relation in RELATIONS for phrasing in relation.phrasings]
    marks = [".", "?"]
    asked = [word for text in texts for word in text.replace("?", "").split()]
    values = [value for relation in RELATIONS for value in relation.values]
    return list(dict.fromkeys([*LETTERS[:OPTIONS], *marks, *asked, *ENTITIES, *values]))


def build_tokenizer(system: str) -> PreTrainedTokenizerFast:
    """Build the tokenizer from the world's known words, without training data.

    Whitespace only separates words. The system message, ``Options:`` and the request for a letter
    are one token each: they are the same in every prompt, and a model this small should not spend
    half its time on them.

    Args:
        system: The tasks' system message.

    Returns:
        The tokenizer; words that occur in no question become the unknown token.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *words()])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_tokens([AddedToken(phrase, normalized=False) for phrase in (system.strip(), "Options:", REQUEST)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=list(SPECIAL[3:]),
        model_max_length=CONTEXT,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
