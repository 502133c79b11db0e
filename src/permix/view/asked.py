"""What a run asks in all, from its own files: which cells belong to it, and how many there are.

Contract: nothing is asked of a model or a registry; a run that does not say how much it asks has a total of None, and no share.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from permix.evals.answers import kind_of
from permix.evals.sequential import Round, spent
from permix.records import read_json

Pairs = frozenset[tuple[str | None, str]]


class Asked(NamedTuple):
    """`personas`, `questions`: those of the grid, None where every one belongs; `pairs`: of a run that asks each persona its own.

    `cells`: how many, None where the run does not say.
    """

    cells: int | None = None
    personas: frozenset[str | None] | None = None
    questions: frozenset[str] | None = None
    pairs: Pairs | None = None
    samples: int | None = None

    def holds(self, persona: str | None, question: str, sample: int, template: str) -> bool:
        """Whether a recorded cell is one of them."""
        if self.pairs is not None and (persona, question) not in self.pairs:
            return False
        inside = (self.personas is None or persona in self.personas) and (self.questions is None or question in self.questions)
        return inside and (self.samples is None or sample < self.samples)


def read_asked(run: Path, config: Mapping[str, Any]) -> Asked:
    """Of a run that has cells. DataError, KeyError, TypeError or ValueError: its files are not what they should be."""
    path = run / "asked.json"
    if config["stage"] not in ("stability", "fidelity") or not path.exists():
        return Asked()
    asked = read_json(path)
    return _grid(asked) if config["stage"] == "stability" else _answers(asked, config)


def _grid(asked: Mapping[str, Any]) -> Asked:
    """Every question under every persona (by every template) and under none."""
    personas, questions, samples = asked["persona_ids"], asked["question_ids"], int(asked["samples"])
    brought_in = len(personas) * len(asked.get("templates", ("",)))
    cells = (brought_in + 1) * len(questions) * samples
    if asked.get("rounds"):
        cells = spent([Round.model_validate(one) for one in asked["rounds"]], samples)
    return Asked(cells, frozenset([None, *personas]), frozenset(questions), samples=samples)


def _answers(asked: Mapping[str, Any], config: Mapping[str, Any]) -> Asked:
    """Of a fidelity run, by its kind."""
    personas = frozenset[str | None](asked["persona_ids"])
    match kind_of(config):
        case "interview":
            return Asked(len(personas) * int(config["interview"]["turns"]), personas)
        case "personagym":
            own: Pairs = frozenset((one["persona_id"], one["id"]) for one in asked["questions_asked"])
            alone: Pairs = frozenset((None, id) for id in asked.get("asked_without_persona", ()))
            return Asked(len(own | alone), pairs=own | alone)
        case "open":
            questions, samples = frozenset[str](asked["question_ids"]), int(asked["samples"])
            return Asked(len(personas) * len(questions) * samples, personas, questions, samples=samples)


def steps_asked(run: Path, config: Mapping[str, Any]) -> int | None:
    """The optimizer steps of a training: what its log ends at. None until it has said so."""
    train = config["train"]
    if config["method"] in ("permix", "rlvr"):
        rounds, steps = int(train["iterations"]), _plan_steps(run) if config.get("plan_file") else int(config["plan"]["steps"])
    else:
        rounds, steps = int(train["epochs"]), _example_steps(run)
    return None if steps is None else steps * rounds


def _plan_steps(run: Path) -> int | None:
    from permix.train.plan import read_plan

    path = run / "plan.parquet"
    return read_plan(path).steps if path.is_file() else None


def _example_steps(run: Path) -> int | None:
    """Steps of the plan that have something to learn from."""
    from permix.train.examples import kept, steps_of

    chosen = kept(run)
    return None if chosen is None else len(steps_of(chosen.examples))
