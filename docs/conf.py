"""Sphinx: `make docs`."""

from importlib.metadata import version as version_of

project = "flask-ctl"
author = "The flask-ctl maintainers"
version = release = version_of("flask-ctl")
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_show_copyright = False
html_theme = "furo"
html_title = f"flask-ctl {version}"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
suppress_warnings = ["autodoc.mocked_object"]
