"""Examples as tensors: encoded as the harness encodes them, padded on either side, the answer's place found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from calibtune.errors import UserError
from calibtune.examples import Encoder, LetterExample

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TokenExample:
    """One question as token ids."""

    #: The prompt; the letter is predicted at its last token and never fed.
    input_ids: tuple[int, ...]
    #: One token id a letter.
    letter_ids: tuple[int, ...]
    gold: int
    #: The question's number among those that it was made from.
    row: int


def tokenise(examples: Sequence[LetterExample], encoder: Encoder, max_length: int) -> list[TokenExample]:
    """Encode examples, each letter being one token of its own.

    Args:
        examples: Rendered questions.
        encoder: Of the model's tokenizer.
        max_length: The model's context in tokens.

    Raises:
        UserError: A letter is several tokens, two share one, or a prompt does not fit the context.
    """
    tokenised: list[TokenExample] = []
    #: Letters after the same last characters of a prompt need encoding once only.
    known: dict[tuple[str, tuple[str, ...]], tuple[int, ...]] = {}
    for row, example in enumerate(examples):
        key = (example.context[-40:], example.letters)
        ids = encoder.encode(example.context, example.letters[0])[0]
        if key not in known:
            known[key] = _letter_ids(example, encoder)
        if len(ids) > max_length:
            raise UserError(
                f"question {row} has {len(ids)} tokens and the model's context {max_length} "
                f"(it ends {example.context[-80:]!r}); fit on another task, or a model with a longer context"
            )
        tokenised.append(TokenExample(tuple(ids), known[key], example.gold, row))
    return tokenised


def _letter_ids(example: LetterExample, encoder: Encoder) -> tuple[int, ...]:
    encoded = [encoder.encode(example.context, letter)[1] for letter in example.letters]
    for letter, ids in zip(example.letters, encoded, strict=True):
        if len(ids) != 1:
            raise UserError(
                f"task {example.prompts.task.task_name}: the option {letter!r} is {len(ids)} tokens, not one; fit on "
                "tasks whose options are letters, and see `python -m calibtune doctor`"
            )
    if len({ids[0] for ids in encoded}) < len(encoded):
        raise UserError(
            f"the letters {example.letters} share a token with this tokenizer; see `python -m calibtune doctor`"
        )
    return tuple(ids[0] for ids in encoded)


def collate(batch: Sequence[TokenExample], pad_id: int, side: str = "left") -> dict[str, Any]:
    """Pad a batch to its longest prompt.

    Args:
        batch: B examples.
        pad_id: Token to pad with.
        side: "left" or "right"; the loss is the same.

    Returns:
        ``input_ids``, ``attention_mask`` and ``position_ids`` (B, T); ``answer`` (B,), the place of the last prompt
        token; ``letter_ids`` (B, K), -1 where a question has fewer letters; ``gold`` (B,); ``row`` (B,).
    """
    import torch

    width = max(len(example.input_ids) for example in batch)
    letters = max(len(example.letter_ids) for example in batch)
    ids = torch.full((len(batch), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(batch), width), dtype=torch.long)
    letter_ids = torch.full((len(batch), letters), -1, dtype=torch.long)
    for row, example in enumerate(batch):
        length = len(example.input_ids)
        start = width - length if side == "left" else 0
        ids[row, start : start + length] = torch.tensor(example.input_ids)
        mask[row, start : start + length] = 1
        letter_ids[row, : len(example.letter_ids)] = torch.tensor(example.letter_ids)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        "answer": answer_positions(mask),
        "letter_ids": letter_ids,
        "gold": torch.tensor([example.gold for example in batch]),
        "row": torch.tensor([example.row for example in batch]),
    }


def answer_positions(mask: torch.Tensor) -> torch.Tensor:
    """The place of each row's last real token, shape (B,), for padding on either side."""
    import torch

    places = torch.arange(mask.shape[1], device=mask.device)
    return (mask * places).argmax(dim=1)
