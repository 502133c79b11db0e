"""What a report of many cells weighs and how quick it is: bytes, CPU seconds, peak memory, and how a browser loads it.

One JSON line a figure. A run of made-up answers is written to a scratch folder, 300 to 600 characters each, words drawn anew from
a vocabulary as skewed as a language's, so that compression is not flattered. A process of its own builds the report; Chromium
then opens it from disk.

    python -m bench.page --personas 100 --questions 1000
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
MAP, DIALOG = ".heat-readout:not(:empty)", "dialog[open] article"


def vocabulary(rng: np.random.Generator) -> list[str]:
    """Words that nobody has said before, of 2 to 11 letters, common letters more often."""
    weight = 1 / np.arange(1, len(LETTERS) + 1)
    letters = rng.choice(list(LETTERS), size=(WORDS, 11), p=weight / weight.sum())
    return ["".join(row[:length]) for row, length in zip(letters, rng.integers(2, 12, WORDS), strict=True)]


def answered(asked: list[Cell], words: list[str], rng: np.random.Generator) -> Iterator[Cell]:
    """Zipf's law for the words, half of the answers right."""
    weight = 1 / (np.arange(WORDS) + 3.0)
    drawn = rng.choice(WORDS, size=(len(asked), 110), p=weight / weight.sum())
    lengths, right = rng.integers(300, 601, len(asked)), rng.random(len(asked)) < 0.5
    for cell, row, length, correct in zip(asked, drawn, lengths, right, strict=True):
        text = f"{' '.join(words[word] for word in row)[:length]} \\boxed{{{72 if correct else 71}}}"
        yield cell.model_copy(
            update={
                "completion": Completion(text=text, prompt_tokens=80, completion_tokens=int(length) // 4, finish="stop"),
                "verdict": Verdict(correct=bool(correct), extracted="72" if correct else "71"),
            }
        )


def write_run(out: Path, P: int, Q: int) -> int:
    """A grid of P personas and none; returns how many cells it has."""
    rng = np.random.default_rng(0)
    words, people, asked, written = vocabulary(rng), personas(P), questions(Q), 0
    wording = PromptFormat(lambda question: question.text, "you_are", empty_system_prompt=False)
    with RunDir.open(out, StabilityConfig(out=out, resamples=200), {"model": "made up", "default_system": None}) as run:
        write_json(out / "grid.json", describe_grid(people, asked, 1))
        for persona in (None, *people):
            cells = build_grid([persona], asked, wording, samples=1, seed=0)
            run.append(answered(cells, words, rng))
            written += len(cells)
    return written


def build(run: Path, out: Path) -> None:
    build_report([run], out)
    used = resource.getrusage(resource.RUSAGE_SELF)
    write_json(out.parent / "used.json", {"build_cpu_s": used.ru_utime + used.ru_stime, "build_peak_mb": used.ru_maxrss / 1024})


def weights(out: Path) -> dict[str, float]:
    beside = [path.stat().st_size for path in out.rglob("*") if path.is_file() and path.name != "index.html"]
    chunks = [path.stat().st_size for path in (out / "cells").iterdir()]
    page = (out / "index.html").stat().st_size
    return {"page_bytes": page, "beside_bytes": sum(beside), "files": len(beside) + 1, "largest_transcripts_bytes": max(chunks)}


def in_browser(page: Path, times: int) -> dict[str, list[float]]:
    """Milliseconds until the map is drawn, and from Enter to a transcript; MB of the script engine's memory with both there."""
    from playwright.sync_api import sync_playwright

    found: dict[str, list[float]] = {"load_ms": [], "drill_down_ms": [], "heap_mb": []}
    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        for _ in range(times):
            opened = browser.new_page(viewport={"width": 1280, "height": 900})
            for name, value in visit(opened, page).items():
                found[name].append(value)
            opened.close()
        browser.close()
    return found


def visit(opened: Any, page: Path) -> dict[str, float]:
    started = time.perf_counter()
    opened.goto(page.as_uri())
    opened.wait_for_selector("[data-chart=grid]").scroll_into_view_if_needed()
    opened.wait_for_selector(MAP)
    loaded = time.perf_counter()
    opened.focus(".heat-canvas")
    opened.keyboard.press("Control+End")
    asked = time.perf_counter()
    opened.keyboard.press("Enter")
    opened.wait_for_selector(DIALOG)
    shown = time.perf_counter()
    heap = opened.evaluate("performance.memory.usedJSHeapSize") / 2**20
    return {"load_ms": 1000 * (loaded - started), "drill_down_ms": 1000 * (shown - asked), "heap_mb": heap}


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m bench.page", description=(__doc__ or "").partition(":")[0])
    options.add_argument("--personas", type=int, default=100)
    options.add_argument("--questions", type=int, default=1000)
    options.add_argument("--loads", type=int, default=5, help="how often the page is opened")
    return options


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
        for figure, value in {**read_json(out.parent / "used.json"), **weights(out)}.items():
            show(figure, value, cells=cells)
        for figure, values in in_browser(out / "index.html", options.loads).items():
            show_spread(figure, values, cells=cells)


if __name__ == "__main__":
    main()
