"""What tests that run programs share: the mark that skips them where no sandbox is to be had, and bounds that are soon met."""

import pytest

from permix.errors import ConfigError
from permix.verification.bubblewrap import SandboxLimits
from permix.verification.sandbox import require_sandbox

TIGHT = SandboxLimits(
    cpu_seconds=1, wall_seconds=10, memory_bytes=256 << 20, processes=8, output_bytes=256 << 10, scratch_bytes=1 << 20
)


def _why_not() -> str:
    try:
        require_sandbox()
    except ConfigError as error:
        return str(error)
    return ""


needs_sandbox = pytest.mark.skipif(_why_not() != "", reason=_why_not())
