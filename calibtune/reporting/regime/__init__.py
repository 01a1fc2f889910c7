"""Show accuracy against calibration, the theory of arXiv 2505.01997, section 4, and preference collapse, on a page."""
