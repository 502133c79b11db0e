"""The pictures of docs/gallery.md: the figures of a report on the recorded runs, and its page as a browser shows it.

The figures are the same bytes for the same records. What a browser shows hangs on its version and on the fonts of the machine;
without a browser those pictures are left as they are, and a line says so.

    python -m bench.gallery --out docs/gallery
"""

import argparse
import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from permix.config import ReportConfig
from permix.report.builder import run_report
from tests.browser import MISSING, PHONE, WIDE, chromium, find_chromium, settle, watched_page

RUNS = tuple(
    Path("docs/recorded/quickstart") / f"{model}-{stage}"
    for model in ("base", "rlvr", "permix-rlvr")
    for stage in ("stability", "fidelity", "train")
    if (model, stage) != ("base", "train")
)
TALLEST = 1200
"""Pixels of a screenshot; what is below is cut off."""


VIEWS: dict[str, tuple[tuple[int, int], str]] = {
    "first": (WIDE, "light"), "first-dark": (WIDE, "dark"), "first-phone": (PHONE, "light"),
}  # fmt: skip
"""What is seen first: by name, the window and the colours asked for."""


def gallery(runs: Sequence[Path], out: Path) -> None:
    """Write every picture anew. Raises AssertionError when the page did what no page may do."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch)
        with contextlib.redirect_stdout(io.StringIO()):
            run_report(ReportConfig(runs=tuple(runs), out=report))
        out.mkdir(parents=True, exist_ok=True)
        for figure in sorted(report.glob("*.png")):
            opened(figure.read_bytes()).save(out / figure.name, optimize=True)
        if (program := find_chromium()) is None:
            print(f"{MISSING}; the page's pictures stay as they are")
            return
        for name, picture in shots(program, report / "index.html"):
            cut(opened(picture)).save(out / f"page-{name}.png", optimize=True)


def shots(program: str, page: Path) -> Iterator[tuple[str, bytes]]:
    with chromium(program) as browser:
        for name, (size, scheme) in VIEWS.items():
            with watched_page(browser, size, color_scheme=scheme, reduced_motion="reduce") as (shown, witness):
                shown.goto(page.as_uri())
                settle(shown.context)
                yield name, shown.screenshot()
            assert witness.complaints == []
        with watched_page(browser, reduced_motion="reduce") as (shown, witness):
            shown.goto(page.as_uri())
            for section in shown.locator("main > section[id]").all()[1:]:
                section.scroll_into_view_if_needed()
                settle(shown.context)
                yield str(section.get_attribute("id")), section.screenshot()
        assert witness.complaints == []


def opened(picture: bytes) -> Image.Image:
    return Image.open(io.BytesIO(picture)).convert("RGB")


def cut(image: Image.Image) -> Image.Image:
    """Of a screenshot, the upper part in as many colours as one byte tells apart: a third of its bytes."""
    return image.crop((0, 0, image.width, min(image.height, TALLEST))).quantize(256, dither=Image.Dither.NONE)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m bench.gallery", description=(__doc__ or "").partition(":")[0])
    options.add_argument("--runs", type=Path, nargs="+", default=RUNS)
    options.add_argument("--out", type=Path, default=Path("docs/gallery"))
    return options


def main() -> None:
    options = parser().parse_args()
    gallery(options.runs, options.out)


if __name__ == "__main__":
    main()
