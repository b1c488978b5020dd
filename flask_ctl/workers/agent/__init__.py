"""The part of a hub's protocol that lives in each worker."""
