"""Private names of other libraries that are used here; a release without one fails a test first."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: Where each is used, and the class or module that must have it.
USED = {
    "calibtune/__main__.py": {"_actions"},
    "calibtune/commands/fit.py": {"_ArgumentGroup"},
    "calibtune/data/encoder.py": {"_encode_pair"},
    "calibtune/models/shares.py": {"_fsdp_param_group", "_set_unshard_async_op"},
    "calibtune/tuning/graphs.py": {"_attn_implementation", "_attn_implementation_internal"},
    "calibtune/tuning/trainer.py": {"_get_grad_norm"},
    "harness_ext/encoding.py": {"_encode_pair"},
}


def private_names(path):
    """Return private attributes that a file reads from other libraries."""
    tree = ast.parse(path.read_text())
    defined = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not own and node.attr not in defined | {"_replace", "_asdict", "_fields", "_exit"}:  # documented ones
                found.add(node.attr)
    return found


@pytest.mark.parametrize(
    "path",
    [p for f in ("calibtune", "harness_ext") for p in sorted((ROOT / f).rglob("*.py"))],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_only_listed_private_names_are_used(path):
    assert private_names(path) <= USED.get(path.relative_to(ROOT).as_posix(), set())


def test_used_and_overridden_private_names_exist():
    import argparse

    from lm_eval.models.huggingface import HFLM
    from transformers import LlamaConfig, Trainer

    for name in (
        "_get_grad_norm",
        "_get_train_sampler",
        "_save_checkpoint",
        "_save_optimizer_and_scheduler",
        "_track_num_input_tokens",
    ):
        assert callable(getattr(Trainer, name))
    for name in ("_encode_pair", "_loglikelihood_tokens"):
        assert callable(getattr(HFLM, name))
    config = LlamaConfig(attn_implementation="sdpa")
    assert config._attn_implementation == config._attn_implementation_internal == "sdpa"
    assert hasattr(argparse.ArgumentParser(), "_actions")
    assert hasattr(argparse, "_ArgumentGroup")
