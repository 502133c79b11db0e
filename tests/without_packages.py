"""The command line in a process that lacks packages, as after an install without their extra."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

_SCRIPT = """
import importlib.util
import sys
LACKS = {packages}
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in LACKS:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Without())
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.partition(".")[0] in LACKS else real(name, *rest)
from permix.cli import main
main(sys.argv[1:])
"""


def run_without(packages: Sequence[str], *argv: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `permix ARGV` where these packages cannot be imported; a RuntimeWarning ends it with an error."""
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", _SCRIPT.format(packages=tuple(packages)), *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | (env or {}))
