"""Loading models, adapters and prefix caches; sharded models."""
