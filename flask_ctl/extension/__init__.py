"""What Flask sees: the extension, its commands and hooks, and the server in a thread."""
