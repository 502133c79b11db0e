"""The figures of the break detector: read from a table, counted right, and the tables are what they are said to be."""

from pathlib import Path

import pytest

from bench.breaks import LABELLED, Labelled, detect, figures, read, share
from permix.types import canonical_text


def test_the_labelled_answers() -> None:
    dev, heldout = (read(LABELLED / f"breaks-{part}.tsv") for part in ("dev", "heldout"))
    assert len(dev) + len(heldout) >= 300
    for part in (dev, heldout):
        assert 0.45 < sum(one.broken for one in part) / len(part) < 0.55
    texts = [canonical_text(one.answer) for one in (*dev, *heldout)]
    assert len(set(texts)) == len(texts)


@pytest.mark.slow
def test_rules_hold_on_what_they_were_written_on() -> None:
    assert [one.case.answer for one in detect(read(LABELLED / "breaks-dev.tsv")) if one.found != one.case.broken] == []


def test_figures_by_hand() -> None:
    cases = [
        Labelled(True, "machine", "a sailor", "I am an AI."),
        Labelled(True, "odd", "a sailor", "Hello."),
        Labelled(False, "plain", "a sailor", "Aye."),
        Labelled(False, "lie", "a sailor", "I am a computer program."),
    ]
    precision, recall, *forms = figures(detect(cases))
    assert (precision["of"], precision["n"], recall["of"], recall["n"]) == (1, 2, 1, 2)
    assert [(one["form"], one["value"]) for one in forms] == [("lie", 1.0), ("plain", 0.0), ("machine", 1.0), ("odd", 0.0)]


def test_exact_intervals() -> None:
    assert share("x", 0, 10)["high"] == pytest.approx(1 - 0.025**0.1, abs=1e-4)
    assert share("x", 0, 0)["value"] is None


@pytest.mark.parametrize("line", ["2\tf\tp\ta", "1\tf\tp", "yes\tf\tp\ta"])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "my.tsv"
    path.write_text(f"breaks\tform\tpersona\tanswer\n1\tf\tp\ta\n{line}\n")
    with pytest.raises(ValueError, match=r"my\.tsv:3"):
        read(path)
    path.write_text("a,b\n")
    with pytest.raises(ValueError, match=r"my\.tsv:1: expected the columns"):
        read(path)
