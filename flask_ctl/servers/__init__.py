"""The HTTP servers: a module for each, and what they share."""
