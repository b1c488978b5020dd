"""``python -m flask_ctl_cli``."""

from .main import main

main()
