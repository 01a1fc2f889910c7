"""AlpacaEval 2.0's length-controlled win rate, by alpaca-eval's own regression, where its data are at hand."""

from __future__ import annotations

import contextlib
import io
import warnings

from calibtune.winrate.alpaca import Judged, package
from calibtune.winrate.journal import key_of
from calibtune.winrate.results import LengthControlled

#: The regression's own data: answers gamed in length, and each instruction's difficulty.
REPOSITORY, FILE = "tatsu-lab/alpaca_eval", "df_gamed.csv"
#: The regression knows AlpacaEval's 805 instructions by their position alone, so they must be these, in their order:
#: :func:`instructions_digest` of the evaluation set.
INSTRUCTIONS = "a9916b1c8ef6a543fbf709dc8cd96f3d8db58f8b618924017482f93194bda3a6"


def length_controlled(pairs: Judged) -> LengthControlled:
    """Win rate had both answers been of one length (Dubois et al. 2024, arXiv 2404.04475).

    Args:
        pairs: All of AlpacaEval's pairs, in its order, with both outputs.

    Returns:
        The rate as a share, or none with the reason: the pairs are not AlpacaEval's 805, or the regression's data are
        not in the local hub cache. Nothing is downloaded.
    """
    if instructions_digest(pairs) != INSTRUCTIONS:
        return _none(f"needs AlpacaEval's own 805 instructions in their order, here are {len(pairs.rows)}")
    if not all(isinstance(row.get(key), str) for row in pairs.rows for key in ("output_1", "output_2")):
        return _none("needs both outputs of each pair, and some are not in the annotations")
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(REPOSITORY, FILE, repo_type="dataset"), str):
        return _none(
            f"its data are not in the local hub cache (fetch them with: hf download {REPOSITORY} {FILE} "
            "--repo-type dataset)"
        )
    rows = [
        {
            "preference": pairs.scores[row["instruction"]] + 1 if row["instruction"] in pairs.scores else None,
            "output_1": row["output_1"],
            "output_2": row["output_2"],
            "generator_1": pairs.baseline,
            "generator_2": pairs.model,
            "annotator": "judge",
        }
        for row in pairs.rows
    ]
    with package() as alpaca_eval, warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore", FutureWarning)
        # Without save_weights_dir=None it would write its coefficients into the installed package.
        found = alpaca_eval.metrics.get_length_controlled_winrate(rows, save_weights_dir=None)
    return LengthControlled(
        float(found["length_controlled_winrate"]) / 100,
        float(found["lc_standard_error"]) / 100,
        "length-controlled rate by alpaca-eval's regression",
    )


def instructions_digest(pairs: Judged) -> str:
    """SHA-256 of the instructions in order, white space around them aside."""
    return key_of([str(row["instruction"]).strip() for row in pairs.rows])


def _none(reason: str) -> LengthControlled:
    return LengthControlled(None, None, f"no length-controlled rate: {reason}")
