"""Sphinx configuration of the site: `make docs`, strict, without a network."""

import hashlib
import os
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_ext")]
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(DOCS.parent / ".jax_cache" / "docs"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(DOCS.parent), os.environ.get("PYTHONPATH")]))

import jaxinterp  # noqa: E402

PACKAGE = Path(jaxinterp.__file__).parent
CODE = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(PACKAGE.rglob("*.py")))).hexdigest()[:12]

project, author = "jaxinterp", "the jaxinterp authors"
project_copyright = author
release = version = jaxinterp.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "mathml",
    "docstrings",
    "generated",
    "results",
]
exclude_patterns = ["_build", "_ext"]
nitpicky = True  # every reference must be found; names of other packages are not looked up, as there is no network

html_theme = "sphinx_book_theme"
html_title = f"jaxinterp {version}"
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "use_download_button": False,
    "show_navbar_depth": 1,
    "article_header_start": ["toggle-primary-sidebar.html"],
}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_cache_path = str(DOCS / "_build" / f"notebooks-{CODE}")  # run anew where the package has changed
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 240  # a tutorial takes at most two minutes on two idle cores
nb_merge_streams = True
copybutton_prompt_text = ">>> |\\.\\.\\. |\\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
maximum_signature_line_length = 80
napoleon_attr_annotations = False  # of which `*shape` would be read as emphasis
napoleon_use_ivar = True
napoleon_custom_sections = ["Source"]
