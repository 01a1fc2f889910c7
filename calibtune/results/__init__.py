"""lm_eval's result files as arrays and numbers; nothing here loads torch."""
