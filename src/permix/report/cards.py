"""A report's result in the cards of the models that it is about: README.md of every model trained in its runs.

Contract: what stands between the two markers is the report's and is written anew each time, at the end of a card that has none
yet; everything else in a card stays as it is. All cards are found and read before the first is written, and each is whole or as it
was.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from permix.errors import DataError
from permix.records import write_text, writing
from permix.report.runs import ModelRuns

BEGIN, END = "<!-- permix report: begin -->", "<!-- permix report: end -->"


def write_cards(models: Sequence[ModelRuns], markdown: str, figure: Path | None) -> list[Path]:
    """Put `markdown` (escaped already) and a copy of `figure` into every card; return the cards. Errors as `cards_of`."""
    cards = cards_of(models)
    shown = "" if figure is None else f"\n\n![Stability against distinctness]({figure.name})"
    renewed = {card: _renewed(card, f"{BEGIN}\n{markdown}{shown}\n{END}") for card in cards}
    for card, text in renewed.items():
        with writing(card):
            if figure is not None:
                _copy(figure, card.with_name(figure.name))
            write_text(card, text)
    return cards


def cards_of(models: Sequence[ModelRuns]) -> list[Path]:
    """The cards of the models trained in these runs. Raises DataError when no run is a training, or a card is not there."""
    trained = [model.runs["train"].path for model in models if "train" in model.runs]
    if not trained:
        raise DataError("cards: none of these runs is a training, so there is no card to write into; give the training runs too")
    cards = [run / "model" / "README.md" for run in trained]
    if missing := [card for card in cards if not card.is_file()]:
        raise DataError(f"cards: {missing[0]} is not there; its training has not ended, or the model was moved away")
    return cards


def _renewed(card: Path, ours: str) -> str:
    """The card with what is ours in it. Raises DataError when it cannot be told where that stood."""
    try:
        text = card.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"cards: {card} is not UTF-8: {error}") from error
    begin, end = text.find(BEGIN), text.find(END)
    if begin == end == -1:
        return f"{text.rstrip()}\n\n{ours}\n"
    if begin == -1 or end < begin or text.count(BEGIN) > 1 or text.count(END) > 1:
        raise DataError(f"cards: {card} must hold {BEGIN} and after it {END}, once each, or neither")
    return text[:begin] + ours + text[end + len(END) :]


def _copy(source: Path, target: Path) -> None:
    scratch = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, scratch)
    os.replace(scratch, target)
