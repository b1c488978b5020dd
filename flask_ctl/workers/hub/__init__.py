"""The hub: the process that owns the control sockets of a server with many workers."""
