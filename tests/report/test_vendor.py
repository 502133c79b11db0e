"""The libraries that the page carries are the published files, and the README beside them names what they are."""

import hashlib
import re
from importlib.resources import files

VENDOR = files("permix.report.html") / "assets" / "vendor"


def test_every_file_is_the_one_whose_sum_is_written_down() -> None:
    sums = {name: sum for sum, name in map(str.split, (VENDOR / "SHA256SUMS").read_text().splitlines())}
    assert set(sums) == {"d3.min.js", "d3.LICENSE", "plot.umd.min.js", "plot.LICENSE"}
    assert {name: hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() for name in sums} == sums


def test_the_readme_names_the_versions_that_the_files_name() -> None:
    named = dict(re.findall(r"^\| `(\S+)` \| `\S+` \| (\S+) \|", (VENDOR / "README.md").read_text(), re.MULTILINE))
    found = {name: re.findall(r" v(\S+) Copyright", (VENDOR / name).read_text(encoding="utf-8")[:200]) for name in named}
    assert found == {name: [version] for name, version in named.items()}
    assert set(named) == {"d3.min.js", "plot.umd.min.js"}


def test_nothing_in_them_ends_the_script_element_they_stand_in() -> None:
    for name in ("d3.min.js", "plot.umd.min.js"):
        assert not re.search(r"</script|<!--", (VENDOR / name).read_text(encoding="utf-8"), re.IGNORECASE)
