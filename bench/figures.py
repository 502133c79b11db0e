"""What benchmarks print: one JSON line a figure. `python -m bench.figures` prints the versions of what is measured.

The revision is that of the working copy, with "+" behind it where files differ from it.
"""

import importlib.metadata
import json
import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

PACKAGES = ("torch", "transformers", "trl", "numpy", "scipy", "pydantic", "lm_eval")


def show(figure: str, value: float, **about: object) -> None:
    """A figure to four digits, and what it was measured on."""
    print(json.dumps({"figure": figure, "value": float(f"{value:.4g}"), **about}), flush=True)


def show_spread(figure: str, values: Sequence[float], **about: object) -> None:
    """The median, the least, the greatest, and how many there are."""
    spread = {"min": round(min(values), 3), "max": round(max(values), 3), "n": len(values)}
    show(figure, statistics.median(values), **spread, **about)


def versions() -> dict[str, str]:
    """The revision, the processor, and the versions of Python and of the packages that are installed."""
    found = {"revision": _git("rev-parse", "--short=12", "HEAD") + ("+" if _git("status", "--porcelain") else "")}
    names = [line.partition(":")[2].strip() for line in _processor_lines() if line.startswith("model name")]
    found |= {"processor": names[0] if names else platform.machine(), "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git(*words: str) -> str:
    root = Path(__file__).parents[1]
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False).stdout.strip()


def _processor_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


if __name__ == "__main__":
    print(json.dumps({"figure": "versions", **versions()}), flush=True)
