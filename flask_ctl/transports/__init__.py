"""The sockets at which a server listens for control, and the thread that serves them."""
