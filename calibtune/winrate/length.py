"""Compute AlpacaEval 2.0's length-controlled win rate with alpaca-eval's regression."""

from __future__ import annotations

import contextlib
import io
import warnings

from calibtune.endpoints.journal import key_of
from calibtune.winrate.alpaca import Judged, package
from calibtune.winrate.results import LengthControlled

#: Data of the regression: answers of manipulated length, and the instructions' difficulties.
REPOSITORY, FILE = "tatsu-lab/alpaca_eval", "df_gamed.csv"
#: :func:`instructions_digest` of AlpacaEval's 805 instructions. The regression identifies them by
#: position only, so a result needs exactly these in the same order.
INSTRUCTIONS = "a9916b1c8ef6a543fbf709dc8cd96f3d8db58f8b618924017482f93194bda3a6"


def length_controlled(pairs: Judged) -> LengthControlled:
    """Compute the win rate at equal answer lengths (Dubois et al. 2024, arXiv 2404.04475).

    Nothing is downloaded.

    Args:
        pairs: AlpacaEval's 805 pairs in its order, with both outputs.

    Returns:
        The win rate in [0, 1], or the reason why there is none: these are not AlpacaEval's pairs,
        outputs are missing, or the regression's data are not in the local hub cache.
    """
    if instructions_digest(pairs) != INSTRUCTIONS:
        return _none(f"it needs AlpacaEval's 805 instructions in their order, here are {len(pairs.rows)}")
    if not all(isinstance(row.get(key), str) for row in pairs.rows for key in ("output_1", "output_2")):
        return _none("it needs both outputs of each pair, but the annotations lack some")
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(REPOSITORY, FILE, repo_type="dataset"), str):
        return _none(
            f"its data are not in the local hub cache (download them with: hf download {REPOSITORY} {FILE} "
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
        # By default it would write its coefficients into the installed package.
        found = alpaca_eval.metrics.get_length_controlled_winrate(rows, save_weights_dir=None)
    return LengthControlled(
        float(found["length_controlled_winrate"]) / 100,
        float(found["lc_standard_error"]) / 100,
        "length-controlled rate by alpaca-eval's regression",
    )


def instructions_digest(pairs: Judged) -> str:
    """Return the SHA-256 of the instructions in order, without surrounding whitespace."""
    return key_of([str(row["instruction"]).strip() for row in pairs.rows])


def _none(reason: str) -> LengthControlled:
    return LengthControlled(None, None, f"no length-controlled rate: {reason}")
