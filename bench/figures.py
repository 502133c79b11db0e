"""Prints the figures of benchmarks, one JSON line each. `python -m bench.figures` prints the versions of what is measured.

The revision is the git commit of the working copy; a "+" follows it if files differ from that commit.
"""

import importlib.metadata
import json
import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

PACKAGES = ("torch", "transformers", "trl", "numpy", "scipy", "pydantic", "lm_eval")


def show(figure: str, value: float, **settings: object) -> None:
    """Print a figure to four significant digits, with the settings that it was measured with."""
    print(json.dumps({"figure": figure, "value": float(f"{value:.4g}"), **settings}), flush=True)


def show_spread(figure: str, values: Sequence[float], **settings: object) -> None:
    """Print the median of the values as a figure, with the least, the greatest and their number."""
    spread = {"min": round(min(values), 3), "max": round(max(values), 3), "n": len(values)}
    show(figure, statistics.median(values), **spread, **settings)


def versions() -> dict[str, str]:
    """Return the revision, the processor, and the versions of Python and of those of `PACKAGES` that are installed."""
    versions = {"revision": _git("rev-parse", "--short=12", "HEAD") + ("+" if _git("status", "--porcelain") else "")}
    processors = [line.partition(":")[2].strip() for line in _cpuinfo_lines() if line.startswith("model name")]
    versions |= {"processor": processors[0] if processors else platform.machine(), "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git(*words: str) -> str:
    root = Path(__file__).parents[1]
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False).stdout.strip()


def _cpuinfo_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


if __name__ == "__main__":
    print(json.dumps({"figure": "versions", **versions()}), flush=True)
