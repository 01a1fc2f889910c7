"""Evaluating a model or an artifact through lm_eval."""
