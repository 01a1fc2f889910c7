"""Make a board: read the models, compare them, write the files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from calibtune.files import refuse_existing, write_json, write_text
from calibtune.reporting.build import plain
from calibtune.reporting.leaderboard.build import build
from calibtune.reporting.leaderboard.entries import Entry, joined, read_entries
from calibtune.reporting.leaderboard.kept import INDEX, keep, read_board, remove_others
from calibtune.reporting.leaderboard.page import render
from calibtune.reporting.leaderboard.tables import board_csv, markdown, pairs_csv


def make(
    folders: Sequence[Path],
    output: Path,
    sort: str | None,
    add: bool,
    overwrite: bool,
    step: Callable[[str], None],
) -> None:
    """Rank the models in the folders and write ``leaderboard.html``, ``.csv``, ``.md``, ``.json`` and ``pairs.csv``.

    Args:
        folders: Output folders of lm_eval.
        output: The board's folder.
        sort: "nll", "conf_ece" or "acc"; None: as the board was, else "nll".
        add: Add the models to the board in ``output``.
        overwrite: Remove existing files in ``output``.
        step: Called with a text after each piece of work.

    Raises:
        UserError: See :func:`calibtune.api.leaderboard`.
    """
    board: list[Entry] = []
    if add:
        board, earlier = read_board(output)
        sort = sort or earlier
    entries, notes = read_entries(folders, step)
    entries = joined(board, entries)
    results = build(entries, sort or "nll", step)
    results["notes"] = [*notes, *results["notes"]]
    results = plain(results)
    page = render(results)
    if not add:
        refuse_existing(output, overwrite)
    kept = keep(entries, output)
    write_text(output / "leaderboard.html", page)
    write_text(output / "leaderboard.csv", board_csv(results))
    write_text(output / "pairs.csv", pairs_csv(results))
    write_text(output / "leaderboard.md", markdown(results))
    # Last: it names all that was kept.
    write_json(output / INDEX, {**results, "kept": kept})
    remove_others(kept, output)
