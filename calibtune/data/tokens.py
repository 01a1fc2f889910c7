"""Examples as tensors: encoded as our tasks are in the harness, padded on either side, the answer's place found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from calibtune.data.encoder import Encoder
from calibtune.data.examples import LetterExample
from calibtune.errors import UserError
from harness_ext.encoding import letter_tokens

if TYPE_CHECKING:
    import torch


#: Padding. On the right it is never read, so that any token serves; a tokenizer's own can lie outside the vocabulary.
PAD = 0
#: A batch ends where a prompt is shorter than this share of its longest, if the batch is so full already.
ALIKE, FULL_ENOUGH = 0.9, 0.3


@dataclass(frozen=True)
class TokenExample:
    """Hold one question as token ids."""

    #: The prompt; the letter is predicted at its last token and never fed.
    input_ids: tuple[int, ...]
    #: One token id a letter.
    letter_ids: tuple[int, ...]
    gold: int
    #: The question's number among those that it was made from.
    row: int


def tokenize(examples: Sequence[LetterExample], encoder: Encoder, max_length: int) -> list[TokenExample]:
    """Encode examples, each letter being one token of its own.

    Args:
        examples: Rendered questions.
        encoder: Of the model's tokenizer.
        max_length: The model's context in tokens.

    Raises:
        UserError: A letter is several tokens, two share one, or a prompt does not fit the context.
    """
    firsts = {_ending(example): example for example in reversed(examples)}
    pairs = [(example.context, example.letters[0]) for example in examples]
    pairs += [(example.context, letter) for example in firsts.values() for letter in example.letters]
    with encoder.ahead(pairs):
        known = {ending: letter_ids(example, encoder) for ending, example in firsts.items()}
        prompts = [encoder.encode(example.context, example.letters[0])[0] for example in examples]
    tokenized: list[TokenExample] = []
    for row, (example, prompt) in enumerate(zip(examples, prompts, strict=True)):
        prefix, letters = known[_ending(example)]
        ids = (*prompt, *prefix)
        if len(ids) > max_length:
            raise UserError(
                f"question {row} has {len(ids)} tokens and the model's context {max_length} "
                f"(it ends {example.context[-80:]!r}); fit on another task, or a model with a longer context"
            )
        tokenized.append(TokenExample(ids, letters, example.gold, row))
    return tokenized


def _ending(example: LetterExample) -> tuple[str, tuple[str, ...]]:
    """Return what the tokens of an example's letters depend on: the last characters of its prompt, and the letters."""
    return example.context[-40:], example.letters


#: Tokens that all of a question's letters begin with, and the one token of each letter after them.
LetterIds = tuple[tuple[int, ...], tuple[int, ...]]


def letter_ids(example: LetterExample, encoder: Encoder) -> LetterIds:
    """Return the letters' tokens after an example's prompt.

    What all letters begin with, such as a tokenizer's own token for a blank, is fed like the prompt.

    Raises:
        UserError: A letter is several tokens of its own, or two share one; with the cause.
    """
    encoded = {letter: encoder.encode(example.context, letter) for letter in example.letters}
    try:
        return letter_tokens(
            {letter: (len(context), tuple(ids)) for letter, (context, ids) in encoded.items()}, encoder.tokenizer
        )
    except UserError as error:
        raise UserError(
            f"task {example.prompts.task.task_name}: {error}; give a task whose options are letters, or a model whose "
            "tokenizer knows them (see `python -m calibtune doctor`)"
        ) from None


def collate(
    batch: Sequence[TokenExample], pad_id: int, side: str = "right", few_shapes: bool = False, least: int = 0
) -> dict[str, Any]:
    """Pad a batch to its longest prompt.

    Padded on the right, a causal model needs neither mask nor positions: no real token sees the padding, and attention
    without a mask takes the fast kernels.

    Args:
        batch: B examples.
        pad_id: Padding token.
        side: "right" or "left"; the loss is the same.
        few_shapes: Make T one of the widths of :func:`common_width`.
        least: Pad as if the longest prompt had at least so many tokens.

    Returns:
        ``input_ids`` (B, T), and for the left side ``attention_mask`` and ``position_ids`` (B, T), which go to the
        model as they are; ``answer`` (B,), the place of the last prompt token; ``letter_ids`` (B, K), -1 where a
        question has fewer letters; ``gold`` (B,); ``row`` (B,).
    """
    import torch

    width = max(least, *(len(example.input_ids) for example in batch))
    width = common_width(width) if few_shapes else width
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
    tensors = {
        "input_ids": ids,
        "answer": answer_positions(mask),
        "letter_ids": letter_ids,
        "gold": torch.tensor([example.gold for example in batch]),
        "row": torch.tensor([example.row for example in batch]),
    }
    if side == "left":
        tensors |= {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    return tensors


def answer_positions(mask: torch.Tensor) -> torch.Tensor:
    """Return the place of each row's last real token, shape (B,), for padding on either side."""
    import torch

    places = torch.arange(mask.shape[1], device=mask.device)
    return (mask * places).argmax(dim=1)


def even_batches(
    lengths: Sequence[int], most: float, enough: float | None = None, few_sizes: bool = False
) -> list[list[int]]:
    """Make batches of about the same number of tokens with little padding, the longest prompts first.

    Args:
        lengths: Tokens of each prompt.
        most: Tokens that a batch may have, padding counted; one prompt may have more.
        enough: Tokens from which a batch ends rather than pad shorter prompts; by default a share of ``most``.
        few_sizes: Make batches of the sizes of :func:`common_size`.

    Returns:
        The prompts' numbers, each once.

    Example:
        >>> even_batches([30, 29, 10, 10, 9, 9], most=50)
        [[0], [1], [2, 3, 4, 5]]
    """
    enough = FULL_ENOUGH * most if enough is None else enough
    order = sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True)
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        longest, size = lengths[order[start]], 1
        for i in range(start + 1, len(order)):
            unlike = lengths[order[i]] < ALIKE * longest and longest * size >= enough
            if longest * (size + 1) > most or unlike:
                break
            size += 1
        size = common_size(size) if few_sizes else size
        batches.append(order[start : start + size])
        start += size
    return batches


def common_size(count: int) -> int:
    """Round a number of prompts down to one of four sizes between two powers of two, or to one up to 8.

    Liger's kernel of rotary embeddings is compiled anew for each number of prompts, for a third of a second on an H200.

    Example:
        >>> [common_size(count) for count in (7, 9, 11, 37, 255)]
        [7, 8, 10, 32, 224]
    """
    step = max(1, 2 ** (count.bit_length() - 1) // 4)
    return count // step * step


def halves(lengths: Sequence[int], most: float) -> list[list[int]]:
    """Halve a batch until its parts are small enough, the longest prompts first.

    So many batches have parts of few sizes, for each of which Liger compiles (see :func:`common_size`).

    Args:
        lengths: Tokens of each prompt.
        most: Tokens that a part may have, padding counted; one prompt may have more.

    Returns:
        The prompts' numbers, each once.

    Example:
        >>> halves([30, 10, 29, 10], most=60)
        [[0, 2], [1, 3]]
    """
    rows = sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True)
    if len(rows) == 1 or lengths[rows[0]] * len(rows) <= most:
        return [rows]
    middle = len(rows) // 2
    return [
        [part[i] for i in found]
        for part in (rows[:middle], rows[middle:])
        for found in halves([lengths[i] for i in part], most)
    ]


def common_width(length: int) -> int:
    """Round a prompt's number of tokens up to one of four widths between two powers of two.

    Batches then have few shapes, with little padding: 17 shapes and 11% in a fit of 2,500 questions of
    mc_calib_indomain and 3 epochs. With eight widths: 30 and 6%; with multiples of 32: 21 and 15%.

    Example:
        >>> [common_width(length) for length in (60, 65, 130, 700)]
        [64, 80, 160, 768]
    """
    step = max(8, 2 ** (length.bit_length() - 1) // 4)
    return -(-length // step) * step


def parts(batch: dict[str, Any], most: float, few_shapes: bool = False) -> list[dict[str, Any]]:
    """Cut a batch into parts that take no more memory than their tokens allow.

    A few prompts are several times as long as most, and a batch of them would decide how much memory a fit takes.

    Args:
        batch: Of :func:`collate`, padded on the right.
        most: Tokens that a part may have, padding counted; one prompt may have more.
        few_shapes: Make T of each part one of the widths of :func:`common_width`, as the batch's is.

    Returns:
        One batch or several, each with its ``share`` of the questions, a scalar: their mean losses, so weighted, sum to
        the whole batch's mean loss.
    """
    import torch

    if batch["input_ids"].numel() <= most:
        return [{**batch, "share": torch.tensor(1.0, device=batch["answer"].device)}]
    lengths = (batch["answer"] + 1).tolist()
    lengths = [common_width(length) for length in lengths] if few_shapes else lengths
    found = []
    for rows in halves(lengths, most):
        part = {name: value[rows] for name, value in batch.items()}
        width = max(lengths[row] for row in rows)
        share = torch.tensor(len(rows) / len(lengths), device=batch["answer"].device)
        found.append({**part, "input_ids": part["input_ids"][:, :width], "share": share})
    return found
