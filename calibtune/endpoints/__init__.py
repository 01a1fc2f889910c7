"""Ask OpenAI-compatible servers, paying for each reply once."""
