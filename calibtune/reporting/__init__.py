"""Build the report's page, figures and tables from lm_eval's results and samples files."""
