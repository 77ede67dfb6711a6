"""Sphinx configuration. The build needs no network: no remote inventories, no remote assets."""

from importlib.metadata import version as installed_version

project = "jobs_async"
author = "jobs_async contributors"
copyright = "2026, jobs_async contributors"
version = release = installed_version("jobs-async")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"jobs_async {release}"
html_copy_source = False
html_show_sourcelink = False
