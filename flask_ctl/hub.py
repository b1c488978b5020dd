"""The hub's entry module, so that ``ps`` shows ``python -m flask_ctl.hub``."""

from .workers.hub.main import main

if __name__ == "__main__":
    main()
