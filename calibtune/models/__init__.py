"""Load models and adapters, score questions, and support sharded models."""
