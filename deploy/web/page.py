"""The page: one document with its style and script in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deploy.web.guard import policy

ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Page:
    """A document and the policy under which it works.

    Attributes:
        html: UTF-8.
        policy: For the header Content-Security-Policy.
    """

    html: bytes
    policy: str

    @classmethod
    def load(cls) -> Page:
        """Read the page from the package."""
        document, style, script = (
            (ASSETS / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")
        )
        html = document.replace("@STYLE@", style).replace("@SCRIPT@", script)
        return cls(html.encode(), policy(style, script))
