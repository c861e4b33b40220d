"""A hook of mkdocs: what pages link to outside docs/ lies on GitHub, since the site has pages only."""

from __future__ import annotations

import re
from typing import Any


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """`](../checkpoints/README.md)` becomes an address in the repository."""
    return re.sub(r"\]\(\.\./([^)]+)\)", rf"]({config['repo_url']}/blob/main/\1)", markdown)
