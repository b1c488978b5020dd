"""Control over NATS: an instance as a micro service of a NATS server, and what its operators share with it."""
