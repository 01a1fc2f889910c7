"""A world whose truth is known: facts with their true probabilities p*, questions about them, scores against p*.

This is the target generative model of paper.md section 2, made up so that the true calibration error and acc* can be
computed and not only bounded.
"""
