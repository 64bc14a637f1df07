"""Export to a static web page that calculates in the browser, and a server to look at it.

from mobilevitv2.export.web import export_site

report = export_site(["mobilevitv2-0.75-objects112"], "site")
print(report.table())
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobilevitv2.export.web.serving import serve_site
    from mobilevitv2.export.web.site import SiteReport, export_site

_HOMES = {"SiteReport": "site", "export_site": "site", "serve_site": "serving"}

__all__ = ["SiteReport", "export_site", "serve_site"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
