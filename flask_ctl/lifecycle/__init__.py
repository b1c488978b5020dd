"""How a stop and a reload go, and the process that serves by itself."""
