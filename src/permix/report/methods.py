"""Which models of a report are one method: those that were trained alike but for their seeds.

Contract: found from the training runs (`permix.report.trained`), or said by the user ("NAME=LABEL,LABEL"). Every model is in
exactly one method; methods keep the order of their first model. Names are unique: a lone model keeps its label.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

from permix.errors import ConfigError
from permix.report.runs import ModelRuns
from permix.report.trained import Role, Training, place_of, start_of, training_of

NAMES: dict[Role, str] = {"rlvr": "RLVR", "permix": "PerMix-RLVR"}
"""What a method of several seeds is called where it is the only one of its role."""


class Method(NamedTuple):
    """Models that differ in their training seeds alone, one a seed; a lone model is a method of one."""

    name: str
    role: Role
    models: tuple[ModelRuns, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(model.label for model in self.models)


def methods(models: Sequence[ModelRuns], named: Sequence[str] = ()) -> list[Method]:
    """The methods, in the order of their first model. Raises ConfigError for a wrong `named`."""
    trainings = {model.label: training_of(model) for model in models}
    said = _said(named, [model.label for model in models])
    groups: dict[str, list[ModelRuns]] = {}
    for model in models:
        groups.setdefault(_group(model.label, trainings[model.label], said), []).append(model)
    roles = [_role(group, trainings) for group in groups.values()]
    names = _names(list(groups.values()), roles, said)
    return [Method(name, role, tuple(group)) for name, role, group in zip(names, roles, groups.values(), strict=True)]


def names_of(methods: Sequence[Method]) -> dict[str, str]:
    """{label: name of its method}."""
    return {label: method.name for method in methods for label in method.labels}


def arrows(methods: Sequence[Method]) -> list[tuple[str, str]]:
    """Names of methods, each pair a step of training: base to RLVR to what has personas mixed in; from base where RLVR is not."""
    of: dict[str, list[str]] = {role: [one.name for one in methods if one.role == role] for role in ("base", "rlvr", "permix")}
    steps = [("base", "rlvr"), ("rlvr" if of["rlvr"] else "base", "permix")]
    return [(start, end) for one, other in steps for start in of[one] for end in of[other]]


def _group(label: str, training: Training | None, said: Mapping[str, str]) -> str:
    """The same for models of one method."""
    if label in said:
        return f"said {said[label]}"
    return f"alone {label}" if training is None else f"trained {json.dumps(training.recipe, sort_keys=True)}"


def _said(named: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    """{label: name} of what the user said."""
    said: dict[str, str] = {}
    for one in named:
        name, equals, listed = one.partition("=")
        members = [label.strip() for label in listed.split(",") if label.strip()]
        name = name.strip()
        if not equals or not name or not members:
            raise ConfigError(f'methods: {one!r} is not NAME=LABEL,LABEL; for example "RLVR=rlvr 1,rlvr 2"')
        if name in said.values():
            raise ConfigError(f"methods: {name!r} is named twice; list all its models in one")
        for label in members:
            if label not in labels:
                raise ConfigError(f"methods: {one!r}: no model has the label {label!r}; there are {', '.join(map(repr, labels))}")
            if label in said:
                raise ConfigError(f"methods: {label!r} stands in {said[label]!r} and in {name!r}; a model is of one method")
            said[label] = name
        if name in labels and name not in members:
            raise ConfigError(f"methods: {name!r} is also the label of a model that is not in it; take another name")
    return said


def _role(group: Sequence[ModelRuns], trainings: Mapping[str, Training | None]) -> Role:
    """What all of them are; "other" where they are not the same."""
    starts = {place_of(training.config.model.name) for training in trainings.values() if training is not None}
    roles: set[Role] = set()
    for model in group:
        training = trainings[model.label]
        if training is not None:
            roles.add(training.role)
        else:
            roles.add("base" if start_of(model) & starts else "other")
    return roles.pop() if len(roles) == 1 else "other"


def _names(groups: Sequence[Sequence[ModelRuns]], roles: Sequence[Role], said: Mapping[str, str]) -> list[str]:
    """Said names and lone labels as they are; others by their role or, where that is not theirs alone, by their labels."""
    of_role, names = Counter(roles), dict[int, str]()
    for place, group in enumerate(groups):
        if group[0].label in said:
            names[place] = said[group[0].label]
        elif len(group) == 1:
            names[place] = group[0].label
    for place, (group, role) in enumerate(zip(groups, roles, strict=True)):
        if place not in names:
            labels = [model.label for model in group]
            tries = [NAMES[role]] if role in NAMES and of_role[role] == 1 else []
            names[place] = _free([*tries, shared_name(labels), ", ".join(labels)], names.values())
    return [names[place] for place in range(len(groups))]


def _free(tries: Sequence[str], taken: Collection[str]) -> str:
    """The first that is a name and not taken."""
    for name in tries:
        if name and name not in taken:
            return name
    return _free([f"{tries[-1]}′"], taken)


def shared_name(labels: Sequence[str]) -> str:
    """What labels of seeds begin with, in whole words: "replay" for "replay 1" and "replay 2"; empty when nothing is shared."""
    words = [re.findall(r"\d+|[^\W\d_]+|[\W_]+", label) for label in labels]
    alike = takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False))
    shared = "".join(column[0] for column in alike)
    return re.sub(r"(?:(?:^|[\W_]+)seed)?[\W_]*$", "", shared, flags=re.IGNORECASE)
