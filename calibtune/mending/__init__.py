"""Mend a model in one go: measure it, fit what may mend it, choose by held-out questions, and say what was gained."""
