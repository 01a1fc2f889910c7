"""The report: from lm_eval's result and sample files to one page, figures and tables, without a model."""
