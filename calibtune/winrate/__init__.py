"""Compute win rates by an LLM judge with lm_eval, alpaca-eval and Arena-Hard."""
