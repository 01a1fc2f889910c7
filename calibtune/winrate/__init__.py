"""Win rates by a judge: answers generated in lm_eval, judged through alpaca-eval or read from Arena-Hard's files."""
