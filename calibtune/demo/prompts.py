"""Draw any number of the world's prompts as token ids, rendered by the harness task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibtune.data.encoder import Encoder
from calibtune.data.examples import Prompts
from calibtune.data.tasks import load_tasks
from calibtune.demo import IN_DOMAIN
from calibtune.demo.tokenizer import build_tokenizer
from harness_ext.prompts import LETTERS
from harness_ext.world.facts import OPTIONS, Fact, facts
from harness_ext.world.questions import ask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Hold B questions in the tokenizer's chat template, rendered as the harness renders them."""

    #: Prompts, padded on the right, shape (B, T).
    input_ids: Ids
    #: Number of tokens of each prompt, shape (B,); the last of them predicts the answer.
    lengths: Ids
    #: Token id of the answer drawn from p*, shape (B,).
    answer: Ids
    #: Token id of another option, drawn uniformly, shape (B,).
    other: Ids


@dataclass(frozen=True)
class PromptBank:
    """Hold every fact in every phrasing, rendered and encoded once.

    Another order of the options only permutes four tokens, so it needs no new rendering.
    """

    tokenizer: PreTrainedTokenizerFast
    #: Encoded prompts with the values in the fact's order, shape (R, T); R is facts times phrasings.
    ids: Ids
    #: Number of tokens of each prompt, shape (R,).
    lengths: Ids
    #: Position of each value's token in the prompt, shape (R, K).
    places: Ids
    #: The same questions without options, answered by a value; shape (R, U).
    open_ids: Ids
    #: Number of tokens of each question without options, shape (R,).
    open_lengths: Ids
    #: p* of the values, shape (R, K).
    p_star: NDArray[np.float64]
    #: Probability of each question, shape (R,); sums to 1.
    weights: NDArray[np.float64]

    def draw(self, count: int, rng: np.random.RandomState) -> Batch:
        """Draw questions by their weights, with a random order of options and an answer from p*.

        Args:
            count: Number of questions, B.
            rng: Source of all draws.
        """
        rows = self._rows(count, rng)
        order = rng.random_sample((count, OPTIONS)).argsort(axis=1)
        ids = self.ids[rows].copy()
        values = np.take_along_axis(ids, self.places[rows], axis=1)
        np.put_along_axis(ids, self.places[rows], np.take_along_axis(values, order, axis=1), axis=1)
        letters = np.asarray(self.tokenizer.convert_tokens_to_ids(list(LETTERS[:OPTIONS])))
        gold, other = _answers(np.take_along_axis(self.p_star[rows], order, axis=1), rng)
        return Batch(ids, self.lengths[rows], letters[gold], letters[other])

    def draw_open(self, count: int, rng: np.random.RandomState) -> Batch:
        """Draw questions without options, as :meth:`draw`; answers are values instead of letters."""
        rows = self._rows(count, rng)
        values = np.take_along_axis(self.ids[rows], self.places[rows], axis=1)
        gold, other = _answers(self.p_star[rows], rng)
        each = np.arange(count)
        return Batch(self.open_ids[rows], self.open_lengths[rows], values[each, gold], values[each, other])

    def _rows(self, count: int, rng: np.random.RandomState) -> Ids:
        return np.searchsorted(self.weights.cumsum(), rng.random_sample(count)).clip(max=len(self.weights) - 1)


def _answers(p_star: NDArray[np.float64], rng: np.random.RandomState) -> tuple[Ids, Ids]:
    """Draw an option from p* (B, K), and another one uniformly; return both indices, shape (B,)."""
    shares = p_star.cumsum(axis=1)
    gold = (rng.random_sample((len(p_star), 1)) > shares / shares[:, -1:]).sum(axis=1)
    return gold, (gold + rng.randint(1, OPTIONS, size=len(p_star))) % OPTIONS


def build_bank(world: Sequence[Fact] | None = None) -> PromptBank:
    """Render and encode the world's prompts with the installed task ``mc_calib_world``.

    Args:
        world: The facts to ask about; all facts by default.

    Returns:
        The bank, with its tokenizer.

    Raises:
        UserError: The harness does not know the task.
    """
    task = load_tasks([IN_DOMAIN])[0]
    tokenizer = build_tokenizer(str(task.config.description))
    encoder = Encoder(tokenizer)
    prompts = Prompts(task, encoder, apply_chat_template=True)
    asked = [
        (fact, share, ask(fact, phrasing, range(OPTIONS), 0))
        for fact in (facts() if world is None else world)
        for phrasing, share in enumerate(fact.phrasing_weights)
    ]
    encoded = [encoder.encode(prompts.example(doc, doc_hash="-").context, "A")[0] for _, _, doc in asked]
    messages = [[{"role": "user", "content": doc["question"]}] for _, _, doc in asked]
    chats = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    places = [
        [tokens.index(value) for value in tokenizer.convert_tokens_to_ids(list(fact.values))]
        for (fact, _, _), tokens in zip(asked, encoded, strict=True)
    ]
    weights = np.asarray([fact.weight * share for fact, share, _ in asked])
    return PromptBank(
        tokenizer,
        *_padded(encoded, tokenizer.pad_token_id),
        np.asarray(places),
        *_padded(tokenizer(chats, add_special_tokens=False)["input_ids"], tokenizer.pad_token_id),
        np.asarray([fact.p_star for fact, _, _ in asked]),
        weights / weights.sum(),
    )


def _padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Ids, Ids]:
    """Return rows of tokens as one array, padded on the right, and the length of each row."""
    ids = np.full((len(rows), max(map(len, rows))), pad, dtype=np.int64)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = tokens
    return ids, np.asarray([len(tokens) for tokens in rows])
