"""How questions are scored: prompts, the letter filter, calibration maths. Never imports torch or calibtune."""
