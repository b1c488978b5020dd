"""The live view of ``flask-ctl top``."""
