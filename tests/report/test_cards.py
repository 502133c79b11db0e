"""The report in models' cards: what is written, what stays, what is refused."""

from pathlib import Path

import pytest

from permix.errors import DataError
from permix.report.builder import CARD_BEGIN, CARD_END, model_card_paths, update_model_cards
from permix.report.runs import ModelRuns, Run
from tests.seeded import train_run


def trained(folder: Path, *cards: str | bytes | None) -> list[ModelRuns]:
    """A model a card, "m0" ...; None is a training without one."""
    models = []
    for n, card in enumerate(cards):
        run = train_run(folder / f"run-{n}", f"m{n}", n)
        if card is not None:
            (run / "model" / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
        models.append(ModelRuns(f"m{n}", {"train": Run(run)}, None, None, None, ()))
    return models


def figure(folder: Path, content: bytes = b"\x89PNG one") -> Path:
    (folder / "tradeoff.png").write_bytes(content)
    return folder / "tradeoff.png"


def test_table_and_figure_stand_at_the_end_of_every_card(tmp_path: Path) -> None:
    models = trained(tmp_path, "# one\n\nText.\n", "# two")
    bystander = ModelRuns("base", {}, None, None, None, ())
    cards = update_model_cards([bystander, *models], "| a |\n|---|\n| 1 |", figure(tmp_path))
    assert cards == [tmp_path / f"run-{n}" / "model" / "README.md" for n in (0, 1)]
    shown = "![PSS against identifiability](tradeoff.png)"
    assert cards[0].read_text() == f"# one\n\nText.\n\n{CARD_BEGIN}\n| a |\n|---|\n| 1 |\n\n{shown}\n{CARD_END}\n"
    assert cards[1].read_text().startswith(f"# two\n\n{CARD_BEGIN}\n| a |")
    assert sorted(one.name for one in cards[0].parent.iterdir()) == ["README.md", "tradeoff.png"]
    assert cards[0].with_name("tradeoff.png").read_bytes() == b"\x89PNG one"


def test_writing_again_replaces_what_is_between_the_markers_and_nothing_else(tmp_path: Path) -> None:
    models = trained(tmp_path, "before\r\n" + f"{CARD_BEGIN}\nold\n{CARD_END}" + "\n\nafter, by hand  \n")
    (card,) = update_model_cards(models, "new", figure(tmp_path, b"two"))
    once = card.read_bytes()
    assert once.startswith(b"before\r\n" + CARD_BEGIN.encode())
    assert once.endswith(CARD_END.encode() + b"\n\nafter, by hand  \n")
    assert b"old" not in once
    update_model_cards(models, "new", figure(tmp_path, b"three"))
    assert card.read_bytes() == once
    assert card.with_name("tradeoff.png").read_bytes() == b"three"


def test_without_a_figure_there_is_none(tmp_path: Path) -> None:
    (card,) = update_model_cards(trained(tmp_path, "card"), "table", None)
    assert card.read_text() == f"card\n\n{CARD_BEGIN}\ntable\n{CARD_END}\n"


@pytest.mark.parametrize(
    "card", [CARD_BEGIN, CARD_END, f"{CARD_END}{CARD_BEGIN}", f"{CARD_BEGIN}{CARD_END}{CARD_BEGIN}{CARD_END}"]
)
def test_markers_that_do_not_pair_are_refused_and_no_card_is_touched(tmp_path: Path, card: str) -> None:
    models = trained(tmp_path, "whole", card)
    with pytest.raises(DataError, match=r"run-1/model/README.md must hold .* once each, or neither"):
        update_model_cards(models, "new", figure(tmp_path))
    assert (tmp_path / "run-0" / "model" / "README.md").read_text() == "whole"
    assert not (tmp_path / "run-0" / "model" / "tradeoff.png").exists()


def test_what_cannot_be_found_or_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of these runs is a training run"):
        model_card_paths([ModelRuns("base", {}, None, None, None, ())])
    with pytest.raises(DataError, match=r"run-1/model/README.md does not exist; its training has not ended"):
        model_card_paths(trained(tmp_path / "a", "whole", None))
    with pytest.raises(DataError, match="is not UTF-8"):
        update_model_cards(trained(tmp_path / "b", b"\xff"), "new", None)
