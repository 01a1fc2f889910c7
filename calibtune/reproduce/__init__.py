"""Reproduce the tables of arXiv 2505.01997 for any model, as a plan of ordinary commands."""
