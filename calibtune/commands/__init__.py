"""One module a command; each has ``add_arguments(parser)`` and ``run(args) -> int`` and imports torch only in ``run``."""
