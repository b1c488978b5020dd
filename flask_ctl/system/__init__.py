"""The operating system and this process: sockets, processes, locks, signals, the exec and the end."""
