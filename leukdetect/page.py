"""Documents and pages from templates: Markdown as it stands, HTML with what it is given shown as text.

A page extends `page.html.jinja`, beside this file. Its policy allows its own style and pictures, and nothing else: no
script, nothing from elsewhere.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

BASE = Path(__file__).with_name("page.html.jinja")


def render(template: Path, **values: Any) -> str:
    """Fills a template, which may extend `page.html.jinja` and its neighbours. A name that is not given is an error."""
    import jinja2  # the extra `report`: a server makes no pages

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, BASE.parent]),
        autoescape=jinja2.select_autoescape(["html.jinja"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["sha256"] = _sha256
    return environment.get_template(template.name).render(values)


def _sha256(text: str) -> str:
    """As a content security policy names what it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
