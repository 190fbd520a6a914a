"""Options of the command line."""


def flags(prefix, options):
    """Flags with their values: ``flags("--trainer.", {"devices": 2})`` is ``("--trainer.devices", 2)``."""
    arguments = []
    for name, value in options.items():
        arguments += [f"{prefix}{name}", value]
    return tuple(arguments)
