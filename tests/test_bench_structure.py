"""The figures of a made package, counted by hand."""

import json
import sys
from pathlib import Path

import pytest

from bench import structure

A = "from made.low import one\n\n\ndef up():\n    from made.high import two\n\n    return one, two\n"
B = "from made.mid.a import up\n"


def test_a_made_package_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    package = tmp_path / "made"
    for name, text in (("mid/a.py", A), ("high/b.py", B), ("low.py", "one = 1\n")):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    monkeypatch.setattr(sys, "argv", ["structure", "--package", str(package)])
    structure.main()
    found = {line["figure"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert found["modules"]["value"] == 3
    assert (found["module_lines"]["value"], found["module_lines"]["largest"]) == (9, 7)
    assert (found["function_lines"]["value"], found["function_lines"]["n"]) == (4, 1)
    assert found["folder_circles"]["value"] == 1  # mid imports high, inside a function, and high imports mid
