"""New code in the same process: preflight, then the old image executes the new one in its place."""
