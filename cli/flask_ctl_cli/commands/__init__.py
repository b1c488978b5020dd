"""The built-in commands: one module each, imported when the command is used."""
