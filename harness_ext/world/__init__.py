"""Generate a world with known true probabilities p*, questions about it, and scores against p*.

The world is a target probabilistic model (arXiv 2505.01997, Definition 4.2). Because p* is known,
the true calibration error and acc* can be computed instead of bounded.
"""
