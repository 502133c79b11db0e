"""Bytes, build time and loading time of the page of a report with many cells. One JSON line a figure.

    python -m bench.page --personas 100 --questions 1000

A run with made-up answers is written to a temporary folder. An answer has 300 to 600 characters; its words are drawn from a
vocabulary with the word frequencies of a language, so that the answers compress about as well as real ones. A process of its own
builds the report (CPU seconds, peak memory in MB); Chromium then opens the page from disk.
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command line does, before numpy is imported

import numpy as np

from bench.figures import show, show_spread
from bench.many_cells import personas, questions
from permix.config import StabilityConfig
from permix.evals.grid import PromptFormat, build_grid, describe_grid
from permix.report.builder import build_report
from permix.storage.files import read_json, write_json
from permix.storage.run_dir import RunDir
from permix.types import Cell, Completion, Verdict

CHROMIUM = "/usr/bin/chromium"
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync")
WORDS, LETTERS = 20_000, "etaoinshrdlucmfwypvbgkqjxz"
"""The size of the vocabulary, and the letters by falling frequency."""
MAP, DIALOG = ".heat-readout:not(:empty)", "dialog[open] article"
"""CSS selectors of the drawn map of cells, and of an open transcript."""


def vocabulary(rng: np.random.Generator) -> list[str]:
    """Return `WORDS` random words of 2 to 11 letters, with common letters more often."""
    weight = 1 / np.arange(1, len(LETTERS) + 1)
    letters = rng.choice(list(LETTERS), size=(WORDS, 11), p=weight / weight.sum())
    return ["".join(row[:length]) for row, length in zip(letters, rng.integers(2, 12, WORDS), strict=True)]


def answer_cells(cells: list[Cell], words: list[str], rng: np.random.Generator) -> Iterator[Cell]:
    """Yield each cell with an answer whose words follow Zipf's law; half of the answers are right."""
    weight = 1 / (np.arange(WORDS) + 3.0)
    drawn = rng.choice(WORDS, size=(len(cells), 110), p=weight / weight.sum())
    lengths, correct_N = rng.integers(300, 601, len(cells)), rng.random(len(cells)) < 0.5
    for cell, row, length, correct in zip(cells, drawn, lengths, correct_N, strict=True):
        text = f"{' '.join(words[word] for word in row)[:length]} \\boxed{{{72 if correct else 71}}}"
        yield cell.model_copy(
            update={
                "completion": Completion(text=text, prompt_tokens=80, completion_tokens=int(length) // 4, finish="stop"),
                "verdict": Verdict(correct=bool(correct), extracted="72" if correct else "71"),
            }
        )


def write_run(out: Path, P: int, Q: int) -> int:
    """Write a run of P personas and the baseline on Q questions, and return the number of its cells."""
    rng = np.random.default_rng(0)
    words, run_personas, run_questions, written = vocabulary(rng), personas(P), questions(Q), 0
    prompt_format = PromptFormat(lambda question: question.text, "you_are", empty_system_prompt=False)
    with RunDir.open(out, StabilityConfig(out=out, resamples=200), {"model": "made up", "default_system": None}) as run:
        write_json(out / "grid.json", describe_grid(run_personas, run_questions, 1))
        for persona in (None, *run_personas):
            cells = build_grid([persona], run_questions, prompt_format, samples=1, seed=0)
            run.append(answer_cells(cells, words, rng))
            written += len(cells)
    return written


def build(run: Path, out: Path) -> None:
    """Build the report, and write the CPU seconds and the peak memory of this process to used.json."""
    build_report([run], out)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    write_json(
        out.parent / "used.json", {"build_cpu_s": usage.ru_utime + usage.ru_stime, "build_peak_mb": usage.ru_maxrss / 1024}
    )


def report_sizes(out: Path) -> dict[str, float]:
    """Return the bytes of the page, of the files beside it and of the largest file of transcripts, and the number of files."""
    others = [path.stat().st_size for path in out.rglob("*") if path.is_file() and path.name != "index.html"]
    transcripts = [path.stat().st_size for path in (out / "cells").iterdir()]
    page = (out / "index.html").stat().st_size
    largest = max(transcripts)
    return {"page_bytes": page, "beside_bytes": sum(others), "files": len(others) + 1, "largest_transcripts_bytes": largest}


def measure_in_browser(page: Path, loads: int) -> dict[str, list[float]]:
    """Open the page in Chromium `loads` times, and return the figures of `measure_load` of each time."""
    from playwright.sync_api import sync_playwright

    figures: dict[str, list[float]] = {"load_ms": [], "drill_down_ms": [], "heap_mb": []}
    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        for _ in range(loads):
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            for name, value in measure_load(tab, page).items():
                figures[name].append(value)
            tab.close()
        browser.close()
    return figures


def measure_load(tab: Any, page: Path) -> dict[str, float]:
    """Return the ms until the map is drawn, the ms from Enter to a transcript, and the MB of JavaScript memory after both."""
    started = time.perf_counter()
    tab.goto(page.as_uri())
    tab.wait_for_selector("[data-chart=grid]").scroll_into_view_if_needed()
    tab.wait_for_selector(MAP)
    loaded = time.perf_counter()
    tab.focus(".heat-canvas")
    tab.keyboard.press("Control+End")
    pressed = time.perf_counter()
    tab.keyboard.press("Enter")
    tab.wait_for_selector(DIALOG)
    shown = time.perf_counter()
    heap = tab.evaluate("performance.memory.usedJSHeapSize") / 2**20
    return {"load_ms": 1000 * (loaded - started), "drill_down_ms": 1000 * (shown - pressed), "heap_mb": heap}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.page", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--personas", type=int, default=100)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--loads", type=int, default=5, help="how often the page is opened")
    return parser


def main() -> None:
    options = parser().parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run, out = Path(scratch) / "run", Path(scratch) / "report"
        cells = write_run(run, options.personas, options.questions)
        child = multiprocessing.get_context("spawn").Process(target=build, args=(run, out))
        child.start()
        child.join()
        if child.exitcode:
            raise SystemExit(f"the report's process ended with status {child.exitcode}")
        for figure, value in {**read_json(out.parent / "used.json"), **report_sizes(out)}.items():
            show(figure, value, cells=cells)
        for figure, values in measure_in_browser(out / "index.html", options.loads).items():
            show_spread(figure, values, cells=cells)


if __name__ == "__main__":
    main()
