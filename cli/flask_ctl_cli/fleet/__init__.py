"""Commands for instances at NATS servers: ``flask-ctl fleet``."""
