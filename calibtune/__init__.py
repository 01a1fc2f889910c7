"""calibtune: measure and mend the calibration of aligned language models."""

__version__ = "0.1.0"
