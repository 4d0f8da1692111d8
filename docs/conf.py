"""Settings of the site, which `make docs` builds."""

import os
import re
from pathlib import Path

import rvi_fast

project = "rvi_fast"
author = "the authors of rvi_fast"
project_copyright = "the authors of rvi_fast"
release = version = rvi_fast.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
]
exclude_patterns = ["build"]
templates_path = ["templates"]

# notebooks lie here with their outputs, and the suite runs them
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"show-inheritance": True}
autosummary_ignore_module_all = False
napoleon_numpy_docstring = False
# an attribute may be documented as a property as well
napoleon_use_ivar = True
napoleon_custom_sections = ["Gradient", "Source", "Shapes", "Traffic", "Limits"]

# links to other projects, where there is a network to fetch their inventories from
intersphinx_mapping = {}
if os.environ.get("RVI_FAST_INTERSPHINX"):
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
    }

html_theme = "furo"
html_title = f"rvi_fast {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
copybutton_exclude = ".linenos, .gp, .go"


def literal_formulas(app, what, name, obj, options, lines):
    """Docstrings are written for help(): indented formulas stay as they are, and | is no markup."""
    found, before, inside = [], "", False
    section = False
    for line in lines:
        section = section or line.rstrip() in SECTIONS
        indented = line.startswith("    ")
        if indented and not before.strip() and not section and not inside:
            found += ["::", ""]
            inside = True
        elif line.strip() and not indented:
            inside = False
        # what stands between backticks, in formulas and in examples is literal anyway
        if not inside and not line.lstrip().startswith((">>>", "...")):
            parts = line.split("`")
            parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
            line = "`".join(parts)
        found.append(line)
        before = line
    lines[:] = found


SECTIONS = {f"{name}:" for name in ("Args", "Attributes", "Example", "Returns", "Raises", "Note")}
SECTIONS |= {f"{name}:" for name in ("Yields", *napoleon_custom_sections)}


def report_of_the_paper(app, docname, source):
    """The page `report` is results/report.md, its anchors and pictures as the site has them."""
    if docname == "report":
        text = (Path(app.srcdir).parent / "results" / "report.md").read_text(encoding="utf-8")
        text = re.sub(r'<a id="([\w-]+)"></a>', r"(\1)=", text)
        source[0] = re.sub(r"\]\(<([\w.-]+\.png)>\)", r"](../results/\1)", text)


def setup(app):
    # before napoleon, which takes sections apart
    app.connect("autodoc-process-docstring", literal_formulas, priority=100)
    app.connect("source-read", report_of_the_paper)
