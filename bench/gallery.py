"""Draws the pictures of docs/gallery.md: the figures of a report on the recorded runs, and screenshots of its page.

    python -m bench.gallery --out docs/gallery

The figures have the same bytes for the same records. Screenshots depend on the version of the browser and on the fonts of the
machine; without a browser they are left as they are, and a line says so.
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
MAX_HEIGHT = 1200
"""The most pixels of a screenshot's height; the rest is cut off."""


VIEWS: dict[str, tuple[tuple[int, int], str]] = {
    "first": (WIDE, "light"), "first-dark": (WIDE, "dark"), "first-phone": (PHONE, "light"),
}  # fmt: skip
"""Screenshots of the top of the page: by name, the size of the window and the colour scheme."""


def draw_gallery(runs: Sequence[Path], out: Path) -> None:
    """Write all pictures. Raises AssertionError if the page logs an error, requests a URL or breaks its policy."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch)
        with contextlib.redirect_stdout(io.StringIO()):
            run_report(ReportConfig(runs=tuple(runs), out=report))
        out.mkdir(parents=True, exist_ok=True)
        for figure in sorted(report.glob("*.png")):
            read_image(figure.read_bytes()).save(out / figure.name, optimize=True)
        if (program := find_chromium()) is None:
            print(f"{MISSING}; the screenshots of the page are not drawn again")
            return
        for name, picture in screenshots(program, report / "index.html"):
            compress_screenshot(read_image(picture)).save(out / f"page-{name}.png", optimize=True)


def screenshots(program: str, page: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and PNG of each of `VIEWS`, then of each section of the page but the first."""
    with chromium(program) as browser:
        for name, (size, scheme) in VIEWS.items():
            with watched_page(browser, size, color_scheme=scheme, reduced_motion="reduce") as (opened_page, witness):
                opened_page.goto(page.as_uri())
                settle(opened_page.context)
                yield name, opened_page.screenshot()
            assert witness.complaints == []
        with watched_page(browser, reduced_motion="reduce") as (opened_page, witness):
            opened_page.goto(page.as_uri())
            for section in opened_page.locator("main > section[id]").all()[1:]:
                section.scroll_into_view_if_needed()
                settle(opened_page.context)
                yield str(section.get_attribute("id")), section.screenshot()
        assert witness.complaints == []


def read_image(picture: bytes) -> Image.Image:
    return Image.open(io.BytesIO(picture)).convert("RGB")


def compress_screenshot(image: Image.Image) -> Image.Image:
    """Return the upper part of a screenshot in 256 colours, which takes a third of the bytes."""
    return image.crop((0, 0, image.width, min(image.height, MAX_HEIGHT))).quantize(256, dither=Image.Dither.NONE)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gallery", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=Path, nargs="+", default=RUNS, help="the runs of the report")
    parser.add_argument("--out", type=Path, default=Path("docs/gallery"), help="the folder for the pictures")
    return parser


def main() -> None:
    options = parser().parse_args()
    draw_gallery(options.runs, options.out)


if __name__ == "__main__":
    main()
