"""Write and read artifacts: manifest, model card, task files, merged and baked models."""
