"""A page with nothing on it but the cells of a report, under the report's own content security policy."""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import permix.report.html
from permix.report.html.transcripts import write_transcripts
from permix.report.runs import ModelRuns

ASSETS = Path(permix.report.html.__file__).parent / "assets"
SCRIPTS = ("cells.js", "heat-draw.js", "heat.js", "transcript.js", "completions.js")

BASE = """
globalThis.permix = {
  data: JSON.parse(document.getElementById("data").textContent),
  el(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes))
      if (name === "style") Object.assign(made.style, value); else made.setAttribute(name, value);
    made.append(...children);
    return made;
  },
  look: () => ({ colour: "#0072b2" }),
  announce(text) { document.getElementById("said").textContent = text; },
  charts: {},
};
permix.shown = new Set(permix.data.sheets.map((one) => one.label));
"""
START = """
addEventListener("DOMContentLoaded", async () => {
  for (const element of document.querySelectorAll("[data-chart]")) await permix.charts[element.dataset.chart](element);
});
"""
STYLE = "body{font:16px system-ui;margin:1rem;color-scheme:light dark;color:CanvasText;background:Canvas}"


def write_bare_page(models: Sequence[ModelRuns], out: Path) -> Path:
    """index.html and cells/ in `out`; the page draws both charts when it is opened."""
    out.mkdir(parents=True, exist_ok=True)
    data = write_transcripts(models, out)
    scripts = [BASE, *((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS), START]
    path = out / "index.html"
    path.write_text(_page(data, scripts), encoding="utf-8")
    return path


def _page(data: dict[str, Any], scripts: Sequence[str]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts]
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    policy = (
        f"default-src 'none'; script-src {allowed} 'self'; style-src 'unsafe-inline'; img-src data:; connect-src 'none'; "
        "base-uri 'none'; form-action 'none'"
    )
    carried = json.dumps(data).replace("<", "\\u003c")
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>cells</title>',
            f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">',
            '<meta name="viewport" content="width=device-width">',
            f"<style>{STYLE}{(ASSETS / 'cells.css').read_text(encoding='utf-8')}</style></head><body><h1>Cells</h1>",
            '<main><div data-chart="grid" id="heat"></div><div data-chart="completions"></div>',
            f'<p id="said" aria-live="polite"></p></main><script type="application/json" id="data">{carried}</script>',
            *(f"<script>{one}</script>" for one in scripts),
            "</body></html>",
        ]
    )
