"""From a message of a peer to a command that it may call: access, limits, audit, and the call itself."""
