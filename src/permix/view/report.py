"""A built report below the folder that is viewed, and which of its files may be served.

Contract: only what `permix report` writes for a browser, by name; never a path that leads elsewhere, by dots or by links.
"""

import re
from pathlib import Path

_NAMES = re.compile(r"(index\.html|report\.md|table\.json|cells/[\w.-]+\.js|tables/[\w.-]+\.csv|[\w.-]+\.(png|svg))", re.ASCII)
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
    ".json": "application/json; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".csv": "text/csv; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Of the report's page, whose scripts stand in it. The page has a narrower policy of its own, and both hold."""


def report_of(root: Path) -> Path | None:
    """The folder of the report: the viewed one itself, or report/ in it; None where none is built."""
    return next((folder for folder in (root, root / "report") if file_of(folder, "index.html") is not None), None)


def file_of(report: Path, name: str) -> Path | None:
    """The file of that name in a report; None where it is none of the report's files."""
    if not _NAMES.fullmatch(name):
        return None
    try:
        home, found = report.resolve(strict=True), (report / name).resolve(strict=True)
    except (OSError, RuntimeError):
        return None
    return found if found == home / name and found.is_file() else None
