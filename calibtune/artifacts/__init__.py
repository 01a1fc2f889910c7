"""What a fit leaves behind: manifest, model card, merged and baked models, task files."""
