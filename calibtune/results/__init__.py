"""Read lm_eval's samples files and compute metrics from them, without loading torch."""
