"""Rank many models on many tasks from lm_eval's results and samples files."""
