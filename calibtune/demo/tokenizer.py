"""The world's tokenizer: one token a word, one a fixed phrase of the prompt, and a chat template."""

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
#: The longest prompt is 29 tokens; a few examples before it fit too.
CONTEXT = 256


def words() -> list[str]:
    """Every word and punctuation mark of the world's questions, letters first, each once."""
    texts = [phrasing.format("") for relation in RELATIONS for phrasing in relation.phrasings]
    marks = [".", "?"]
    asked = [word for text in texts for word in text.replace("?", "").split()]
    values = [value for relation in RELATIONS for value in relation.values]
    return list(dict.fromkeys([*LETTERS[:OPTIONS], *marks, *asked, *ENTITIES, *values]))


def build_tokenizer(system: str) -> PreTrainedTokenizerFast:
    """Make the tokenizer; no data are needed, since the world's words are known.

    Blanks and line ends only separate words. The system message, ``Options:`` and the request for a letter are one
    token each: they are the same in every prompt, and a model this small should not spend half its time on them.

    Args:
        system: The tasks' system message.

    Returns:
        The tokenizer; a word of no question becomes the unknown token.
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
