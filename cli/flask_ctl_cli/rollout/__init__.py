"""Rollouts: one change of many instances, batch by batch, with a record of what has become of each."""
