"""The training questions of one epoch: in what order, and with their options in what order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset, Sampler

from calibtune.data.encoder import Encoder
from calibtune.data.examples import LetterExample, reorder
from calibtune.data.tokens import TokenExample, tokenize
from harness_ext.binning import FloatArray
from harness_ext.ragged import ragged

#: Batches that are sorted by length together; between such stretches the order stays random.
STRETCH = 100


class TrainingSet(Dataset):
    """Hold the training questions as tokens, options re-ordered anew in each epoch where asked.

    Args:
        examples: Training questions.
        encoder: Of the model's tokenizer.
        max_length: The model's context in tokens.
        seed: Of the orders of questions and options.
        shuffle_options: Re-order the options of each question in each epoch.

    Raises:
        UserError: See :func:`calibtune.data.tokens.tokenize` and :func:`calibtune.data.examples.reorder`.
    """

    def __init__(
        self, examples: Sequence[LetterExample], encoder: Encoder, max_length: int, seed: int, shuffle_options: bool
    ) -> None:
        self.examples, self.encoder, self.max_length = examples, encoder, max_length
        self.seed, self.shuffle_options = seed, shuffle_options
        self.epoch = -1
        self.rows: list[TokenExample] = []
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Put the questions into the form of an epoch; the same epoch again changes nothing."""
        if epoch == self.epoch:
            return
        self.epoch = epoch
        if self.shuffle_options:
            shown = [
                reorder(example, option_order(self.seed, epoch, example.doc_hash, len(example.letters)))
                for example in self.examples
            ]
            self.rows = tokenize(shown, self.encoder, self.max_length)
        elif not self.rows:
            self.rows = tokenize(self.examples, self.encoder, self.max_length)

    def reordered(self, scores: FloatArray, epoch: int) -> FloatArray:
        """Put the scores of an epoch's order of options into the present epoch's order.

        Args:
            scores: Shape (N, K), NaN where a question has fewer options.
            epoch: The one that the columns are of.
        """
        if not self.shuffle_options:
            return scores
        found = []
        for row, example in zip(scores, self.examples, strict=True):
            before, now = (
                option_order(self.seed, shown, example.doc_hash, len(example.letters)) for shown in (epoch, self.epoch)
            )
            found.append([row[before.index(option)] for option in now])
        return ragged(found)

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self.rows)

    def __getitem__(self, index: int) -> TokenExample:
        """One question as it is in this epoch."""
        return self.rows[index]


@dataclass(frozen=True)
class Questions:
    """Hold a fit's questions as tokens."""

    train: TrainingSet
    held_out: tuple[TokenExample, ...]
    pad_id: int


def option_order(seed: int, epoch: int, doc_hash: str, letters: int) -> list[int]:
    """Draw the order of a question's options in an epoch, the same for every method, batch and process.

    Args:
        seed: The fit's.
        epoch: From 0.
        doc_hash: The question's.
        letters: K.

    Returns:
        A permutation of 0 to K - 1.
    """
    digest = hashlib.sha256(f"{seed}/{epoch}/{doc_hash}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little")).permutation(letters).tolist()


class GroupedOrder(Sampler[int]):
    """Random order in each epoch, with questions of like length side by side, in whole batches.

    Each epoch leaves out the few questions that do not fill a last batch, others each time, so that every step sees
    the same number whatever the split into processes and accumulated parts.

    Args:
        data: The training questions; its ``epoch`` says which order.
        per_pass: Questions in a forward pass of one process.
        accumulated: Forward passes in a step.
        processes: Each gets prompts as long as the others', which would wait for it. Accelerate gives each forward pass
            of a process the questions that follow those of the process before.
    """

    def __init__(self, data: TrainingSet, per_pass: int, accumulated: int = 1, processes: int = 1) -> None:
        self.data, self.per_pass, self.processes = data, per_pass, processes
        #: Tokens of the longest prompt that any process has in the same forward pass, by question. Passes as wide as
        #: that have the same shape in all processes, which then record it at the same time.
        self.longest: dict[int, int] = {}
        self.batch_size = per_pass * accumulated * processes

    def __len__(self) -> int:
        """Questions in an epoch."""
        return len(self.data) // self.batch_size * self.batch_size

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of the epoch's questions."""
        rng = np.random.default_rng([self.data.seed, self.data.epoch])
        order = rng.permutation(len(self.data))[: len(self)]
        batches: list[list[int]] = []
        for start in range(0, len(order), self.batch_size * STRETCH):
            stretch = sorted(
                order[start : start + self.batch_size * STRETCH].tolist(), key=lambda i: len(self.data[i].input_ids)
            )
            batches += [stretch[i : i + self.batch_size] for i in range(0, len(stretch), self.batch_size)]
        for batch in rng.permutation(len(batches)):
            yield from self._dealt(batches[batch])

    def _dealt(self, batch: list[int]) -> Iterator[int]:
        """Yield a step's questions, process by process for each accumulated part."""
        part = self.per_pass * self.processes
        for start in range(0, len(batch), part):
            together = batch[start : start + part]
            self.longest |= dict.fromkeys(together, len(self.data[together[-1]].input_ids))
            for process in range(self.processes):
                yield from together[process :: self.processes]
