"""Shared by all commands: one-line errors, arguments, text tables. It loads no torch."""
