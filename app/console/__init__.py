"""What all commands share: errors of one line, arguments, tables of text. It loads no torch."""
