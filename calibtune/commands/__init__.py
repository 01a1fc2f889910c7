"""One module a command: ``add_arguments(parser)``, ``run(args) -> int``; torch is imported only inside ``run``."""
