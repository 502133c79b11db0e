"""Personas mixed into a data set of TRL's, and the verifier as its reward: draws, columns, refusals, and TRL's own trainer."""

import json
import pickle
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from permix.config import TaskConfig
from permix.errors import ConfigError, DataError
from permix.interop.trl import VerifiableReward, mix_personas, verifiable_reward
from permix.personas.pool import load_pool
from permix.plan import PersonaSampler, sample_persona
from permix.prompts import build_messages
from permix.tasks import TASKS, LoadedTask, Task, load_task
from permix.tasks.custom import find_gold
from permix.types import Persona, Verdict, digest, seed_from
from tests.sample_runs import TEXTS

Row = dict[str, Any]
PERSONAS = [Persona(id=name, text=text, tags=(name, "all")) for name, text in TEXTS.items()]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


ROWS: list[Row] = [{"prompt": [user(f"What is {n} + 1?")], "answer": str(n + 1), "level": n % 3} for n in range(60)]


def mixed(rows: Sequence[Row] = ROWS, personas: Any = PERSONAS, **settings: Any) -> list[Row]:
    return mix_personas(list(rows), personas, **settings)


# Personas


def test_the_persona_is_a_system_message_and_says_who_it_is() -> None:
    for before, after in zip(ROWS, mixed(mix=0.5), strict=True):
        assert (after["answer"], after["level"]) == (before["answer"], before["level"])
        if after["persona_id"] is None:
            assert after["prompt"] == before["prompt"]
            assert after["persona_tags"] == []
        else:
            [persona] = [one for one in PERSONAS if one.id == after["persona_id"]]
            assert after["prompt"] == list(build_messages(persona, before["prompt"][0]["content"]))
            assert after["persona_tags"] == [persona.id, "all"]
    assert list(ROWS[0]) == ["prompt", "answer", "level"]
    assert ROWS[0]["prompt"] == [user("What is 0 + 1?")]


def test_a_larger_mix_only_adds_personas() -> None:
    drawn = [[row["persona_id"] for row in mixed(mix=mix)] for mix in (0, 0.25, 0.5, 0.8, 1)]
    for less, more in pairwise(drawn):
        assert all(one in (None, two) for one, two in zip(less, more, strict=True))
    counts = [sum(one is not None for one in some) for some in drawn]
    assert counts[0] == 0
    assert counts[-1] == 60
    assert counts == sorted(counts)
    assert 15 < counts[2] < 45
    assert set(drawn[-1]) == set(TEXTS)
    assert [row["persona_id"] for row in mixed()] == drawn[3]


def test_the_draw_is_that_of_a_plan_and_depends_on_the_seed_and_the_prompt_alone() -> None:
    pool = tuple(sorted(PERSONAS, key=lambda persona: persona.id))
    sampler = PersonaSampler(pool, (0.25,) * 4)
    content = digest(json.dumps([["user", "What is 7 + 1?"]]))
    expected = sample_persona(seed_from("mix", 3, content), sampler, 0.9)
    whole = mixed(mix=0.9, seed=3)
    assert whole[7]["persona_id"] == (expected.id if expected else None)
    assert mixed(ROWS[::-1], mix=0.9, seed=3) == whole[::-1]
    assert mixed(ROWS[7:8], mix=0.9, seed=3) == whole[7:8]
    assert mixed([row | {"level": 9} for row in ROWS], PERSONAS[::-1], mix=0.9, seed=3) == [row | {"level": 9} for row in whole]
    assert mixed(mix=0.9, seed=4) != whole


def test_weights_of_tags_and_personas_are_the_pools() -> None:
    heavy = [persona.model_copy(update={"weight": 1e9 if persona.id == "troll" else 1.0}) for persona in PERSONAS]
    assert {row["persona_id"] for row in mixed(personas=heavy, mix=1)} == {"troll"}
    assert {row["persona_id"] for row in mixed(mix=1, tag_weights={"troll": 0, "nurse": 0})} == {"clerk", "sailor"}
    with pytest.raises(ConfigError, match="unknown tag 'trol'"):
        mixed(tag_weights={"trol": 0})


def test_of_the_built_in_pool_only_the_train_split_is_drawn_from() -> None:
    train = {persona.id for persona in load_pool().in_split("train").personas}
    assert {row["persona_id"] for row in mixed(personas="builtin", mix=1)} <= train
    with pytest.raises(DataError, match="no such file"):
        mixed(personas="nowhere.csv")


def test_data_sets_of_every_kind_are_mixed_alike() -> None:
    whole = mixed(mix=0.5)
    table = mix_personas(Dataset.from_list(ROWS), PERSONAS, 0.5)
    assert isinstance(table, Dataset)
    assert table.column_names == ["prompt", "answer", "level", "persona_id", "persona_tags"]
    assert table.to_list() == whole
    stream = mix_personas(Dataset.from_list(ROWS).to_iterable_dataset(), PERSONAS, 0.5)
    assert isinstance(stream, IterableDataset)
    assert list(stream) == whole
    unknown = mix_personas(IterableDataset.from_generator(lambda: iter(ROWS)), PERSONAS, 0.5)
    assert list(unknown) == whole
    assert mix_personas([], PERSONAS) == []


def test_columns_have_their_types_when_nobody_is_drawn() -> None:
    table = mix_personas(Dataset.from_list(ROWS), PERSONAS, 0)
    assert (table.features["persona_id"].dtype, table.features["persona_tags"].feature.dtype) == ("string", "string")
    assert table.to_list() == mixed(mix=0)


def test_a_data_set_that_pads_its_messages_draws_the_same() -> None:
    padded = [row | {"prompt": [message | {"name": None} for message in row["prompt"]]} for row in ROWS]
    assert [row["persona_id"] for row in mixed(padded)] == [row["persona_id"] for row in mixed()]
    first = mix_personas(Dataset.from_list(padded), PERSONAS, 1)[0]["prompt"]
    assert [message["role"] for message in first] == ["system", "user"]
    assert first[0]["name"] is None


def test_conversations_keep_their_turns() -> None:
    turns = [user("Hello."), {"role": "assistant", "content": "Hi."}, user("What is 1 + 1?")]
    [row] = mixed([{"prompt": turns}], PERSONAS[:1], mix=1)
    assert row["prompt"] == [system("You are a careful clerk."), *turns]
    [row] = mixed([{"prompt": turns}], PERSONAS[:1], mix=1, template="in_question")
    assert row["prompt"] == [user("You are a careful clerk.\n\nHello."), *turns[1:]]
    blocks = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}]}]
    [row] = mixed([{"prompt": blocks}], PERSONAS[:1], mix=1, template="Be {persona}!")
    assert row["prompt"] == [system("Be a careful clerk!"), *blocks]
    with pytest.raises(DataError, match="puts the persona into the user's text, but this prompt has no such text"):
        mixed([{"prompt": blocks}], PERSONAS[:1], mix=1, template="in_question")


def test_a_system_message_is_refused_or_put_behind_the_persona() -> None:
    row = {"prompt": [system("Answer in one word."), user("What is 1 + 1?")]}
    with pytest.raises(
        DataError, match=r"has a system message of its own, 'Answer in one word\.'; leave it out, or give on_system"
    ):
        mixed([row], mix=0)
    [both] = mixed([row], PERSONAS[:1], mix=1, on_system="append")
    assert both["prompt"] == [system("You are a careful clerk.\n\nAnswer in one word."), user("What is 1 + 1?")]
    [alone] = mixed([row], PERSONAS[:1], mix=0, on_system="append")
    assert alone["prompt"] == row["prompt"]
    [empty] = mixed([{"prompt": [system(""), user("What is 1 + 1?")]}], PERSONAS[:1], mix=1)
    assert empty["prompt"] == [system("You are a careful clerk."), user("What is 1 + 1?")]


@pytest.mark.parametrize(
    ("rows", "settings", "kind", "words"),
    [
        ([{"prompt": "What is 1 + 1?"}], {}, DataError, "prompt = 'What is 1 . 1.': is not in TRL's conversational format"),
        ([{"question": "What is 1 + 1?"}], {}, DataError, "prompt = None: is not in TRL's"),
        ([{"prompt": []}], {}, DataError, r"prompt = \[\]: is not in TRL's"),
        ([{"prompt": ["What is 1 + 1?"]}], {}, DataError, "is not in TRL's"),
        (ROWS, {"mix": 1.2}, ConfigError, "mix = 1.2: must be a share of the rows, from 0 to 1"),
        (ROWS, {"mix": -0.1}, ConfigError, "mix = -0.1"),
        (ROWS, {"template": "yuo"}, ConfigError, "template = 'yuo': give one of you_are"),
        (ROWS, {"on_system": "replace"}, ConfigError, "on_system = 'replace': give"),
        (
            [ROWS[0] | {"persona_id": "me"}],
            {},
            ConfigError,
            "has a column persona_id already; personas can be mixed in only once",
        ),
    ],
)
def test_what_cannot_be_mixed_is_refused(rows: list[Row], settings: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        mixed(rows, **settings)


def test_a_dict_of_data_sets_is_refused() -> None:
    both = DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS)})
    with pytest.raises(ConfigError, match=r"a dict of data sets \(train, test\); give only the one to train on"):
        mix_personas(both, PERSONAS)
    with pytest.raises(ConfigError, match="has a column persona_id already"):
        mix_personas(mix_personas(both["train"], PERSONAS), PERSONAS)


# The reward


def said(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def reward_of(reward: VerifiableReward, completions: list[Any], answers: list[Any], **columns: Any) -> list[float | None]:
    return reward([None] * len(completions), completions, **{reward.answer_column: answers}, **columns)


def test_a_right_answer_earns_one_and_any_other_nothing() -> None:
    reward = verifiable_reward("gsm8k")
    texts = ["So \\boxed{72}.", "#### 72", "It is 72 or 71", "I give up.", ""]
    assert reward_of(reward, said(*texts), ["72"] * 5) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert reward_of(reward, texts, ["72"] * 5) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert reward_of(reward, [[{"role": "assistant", "content": None, "tool_calls": []}], []], ["72"] * 2) == [0.0, 0.0]
    two_turns = [[*said("\\boxed{1}")[0], user("Sure?"), *said("\\boxed{72}")[0]]]
    assert reward_of(reward, two_turns, ["72"]) == [1.0]


def test_the_reward_is_the_evaluations_verdict() -> None:
    task = load_task("arithmetic", n=20)
    reward = verifiable_reward(task)
    texts = [f"\\boxed{{{question.gold}}}" if n % 2 else "\\boxed{0.5}" for n, question in enumerate(task.questions)]
    rows = task.prompt_rows()
    assert reward_of(reward, said(*texts), [row["answer"] for row in rows]) == [float(n % 2) for n in range(20)]


@pytest.mark.parametrize(
    ("task", "answer", "gold"),
    [
        ("gsm8k", "She earned 0.2 x 50 = $<<0.2*50=10>>10.\n#### 10", "10"),
        ("gsm8k", "1,234", "1234"),
        ("math", "We get $x = 2$, so \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("math", "\\frac{1}{2}", "\\frac{1}{2}"),
        ("own-exact", "The answer is: yes\nor no", "The answer is: yes\nor no"),
        ("own-exact", "\\boxed{Paris}", "Paris"),
        ("own-number", "\\boxed{5}", "5"),
        ("own-number", "2 + 3 = 5\n#### 5", "5"),
        ("own-number", "five", None),
        ("own-choice", "B", "B"),
        ("arithmetic", "12", "12"),
        ("gsm8k", "no number", None),
        ("own-choice", "the second", None),
    ],
)
def test_of_a_worked_solution_the_final_answer_counts(task: str, answer: str, gold: str | None) -> None:
    assert find_gold(TASKS[task], answer) == gold


@pytest.mark.parametrize("task", ["mmlu", "own-choice"])
@pytest.mark.parametrize(
    ("answer", "gold"),
    [(1, "B"), (0, "A"), (np.int64(1), "B"), (1.0, "B"), ("B", "B"), ("b", "B"), ("(b)", "B"), (["B"], "B")]
    + [(one, None) for one in ("1", -1, 26, 0.5, True, None, float("nan"), "Paris", "", "BC", ["A", "B"], [], {"A": 1})],
)
def test_of_choices_the_gold_is_a_letter_or_an_index(task: str, answer: object, gold: str | None) -> None:
    assert find_gold(TASKS[task], answer) == gold


def test_rows_of_the_published_mmlu_are_rewarded() -> None:
    assert reward_of(verifiable_reward("mmlu"), ["\\boxed{B}", "\\boxed{1}"], [1, 1]) == [1.0, 0.0]


@pytest.mark.parametrize("task", ["math", "own-exact", "own-number", "gsm8k", "mmlu", "own-math"])
@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan"), np.nan, " ", {}, [], [None], True])
def test_no_answer_is_no_score_and_not_a_wrong_one(task: str, missing: object, capsys: pytest.CaptureFixture[str]) -> None:
    gold = "B" if task == "mmlu" else "5"
    reward = verifiable_reward(task)
    assert reward_of(reward, [f"\\boxed{{{gold}}}", "\\boxed{7}"], [gold, missing]) == [1.0, None]
    assert "is not an answer that can be verified; its rewards are None" in capsys.readouterr().err
    with pytest.raises(DataError, match=f"is not an answer that the task {task} can verify"):
        reward_of(verifiable_reward(task), ["\\boxed{5}"], [missing])


@pytest.mark.parametrize(
    ("task", "column", "answers", "rewards"),
    [
        ("own-exact", "answer", ["a", "b"], [1.0, 1.0, 0.0]),
        ("own-exact", "answer", np.array(["a", "b"]), [1.0, 1.0, 0.0]),
        ("own-exact", "answers", ("a", "b"), [1.0, 1.0, 0.0]),
        ("math", "answer", ["a"], [1.0, 0.0, 0.0]),
        ("math", "answers", ["a", "b"], [1.0, 1.0, 0.0]),
    ],
)
def test_a_list_holds_accepted_answers_as_in_a_file(task: str, column: str, answers: Any, rewards: list[float]) -> None:
    said_what = ["\\boxed{a}", "\\boxed{b}", "\\boxed{c}"]
    assert reward_of(verifiable_reward(task, column), said_what, [answers] * 3) == rewards


@pytest.mark.parametrize("task", ["math", "gsm8k", "own-number", "mmlu", "own-choice"])
def test_a_list_of_which_nobody_says_whether_all_or_any_are_right_is_none(task: str) -> None:
    assert find_gold(TASKS[task], ["1", "2"]) is None
    accepted = find_gold(TASKS[task], ["1", "2"], any_of=True)
    assert (accepted is None) == (task in ("mmlu", "own-choice"))


def test_a_task_of_ones_own_that_raises_gives_no_reward() -> None:
    def scores(text: str, gold: str) -> Any:
        return True if text == "a bool" else Verdict(correct=text == gold)

    task = Task(
        name="mine", prompt_template="{question}", questions=lambda config: (), extract=lambda text, question: text, scorer=scores
    )
    assert reward_of(verifiable_reward(task), said("12", "a bool"), ["12"] * 2) == [1.0, None]


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: verifiable_reward("math")(["a"], ["5", "6"], answer=["5", "6"]), DataError, "reward: 1 prompts for 2 compl"),
        (lambda: verifiable_reward("math")(None, [None], answer=["5"]), DataError, "completion = None: must be a text"),
        (lambda: verifiable_reward(None), ConfigError, "task = None: must be the name of a task"),  # type: ignore[arg-type]
        (lambda: mixed(mix="1"), ConfigError, "mix = '1': must be a share"),
        (lambda: mixed(mix=True), ConfigError, "mix = True: must be a share"),
        (lambda: mix_personas((row for row in ROWS), PERSONAS), ConfigError, "dataset = <generator .*: must be a list of rows"),  # type: ignore[call-overload]
        (lambda: mix_personas(None, PERSONAS), ConfigError, "dataset = None: must be a list of rows"),  # type: ignore[call-overload]
        (lambda: mix_personas(["What is 1?"], PERSONAS), DataError, r"dataset\[0\] = 'What is 1\?': must be a row"),  # type: ignore[list-item]
        (lambda: mixed([{"prompt": [{"role": "user"}]}]), DataError, r"the message \{'role': 'user'\} has no content"),
        (lambda: mixed(personas=""), ConfigError, "^personas: pool = '': is empty"),
        (lambda: mixed(personas={"pool": "builtin"}), DataError, "^personas = {'pool': 'builtin'}: must be"),
        (lambda: mixed(personas=[5]), DataError, r"^personas\[0\] = 5: must be a text"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_in_one_line(call: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        call()


def test_a_data_frame_is_no_list_of_its_columns() -> None:
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ConfigError, match=r'dataset: is a data frame; give dataset\.to_dict\("records"\), or'):
        mix_personas(pandas.DataFrame(ROWS), PERSONAS)
    [row] = mixed(ROWS[:1], pandas.DataFrame({"text": ["a poet"]}), mix=1)
    assert row["prompt"][0] == system("You are a poet.")


def test_a_message_that_calls_a_tool_has_no_content() -> None:
    turns = [user("What is 1 + 1?"), {"role": "assistant", "tool_calls": []}, user("And?")]
    [row] = mixed([{"prompt": turns}], PERSONAS[:1], mix=1)
    assert row["prompt"] == [system("You are a careful clerk."), *turns]


def test_rows_of_the_published_gsm8k_are_rewarded() -> None:
    reward = verifiable_reward("gsm8k", answer_column="solution")
    worked = (
        "Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.\nWorking 50 minutes, she earned 0.2 x 50 = $<<0.2*50=10>>10.\n#### 10"
    )
    assert reward_of(reward, said("\\boxed{10}", "\\boxed{50}"), [worked, worked]) == [1.0, 0.0]


def test_a_verifier_that_fails_gives_no_reward_and_is_counted() -> None:
    def unsure(text: str, gold: str) -> Verdict:
        return Verdict(correct=None, error="out of memory") if text == "heavy" else Verdict(correct=text == gold)

    task = Task(
        name="mine", prompt_template="{question}", questions=lambda config: (), extract=lambda text, question: text, scorer=unsure
    )
    noted: list[tuple[str, float]] = []
    reward = verifiable_reward(task)
    rewards = reward_of(reward, said("12", "heavy", "7"), ["12"] * 3, log_metric=lambda *metric: noted.append(metric))
    assert rewards == [1.0, None, 0.0]
    assert noted == [("mine_reward/unscored", 1.0)]


def test_one_answer_that_cannot_be_verified_gives_none_and_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    reward = verifiable_reward("gsm8k")
    assert reward_of(reward, said("\\boxed{72}", "\\boxed{3}"), ["72", "a few"]) == [1.0, None]
    assert reward_of(reward, said("\\boxed{3}"), ["a few"]) == [None]
    assert capsys.readouterr().err.count("note: gsm8k_reward: 'a few' is not an answer that can be verified") == 1


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"answer": ["a few", "many"]}, "gsm8k_reward: answer = 'a few': is not an answer that the task gsm8k can verify"),
        ({"answer": ["1"]}, "gsm8k_reward: 1 answers in 'answer' for 2 completions"),
        ({"gold": ["1", "2"]}, "gsm8k_reward: the data set has no column 'answer'; answer_column may be one of: gold"),
    ],
)
def test_a_column_that_cannot_be_right_is_refused(answers: dict[str, list[str]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        verifiable_reward("gsm8k")([None, None], said("1", "2"), **answers, trainer_state=None)


def test_a_task_that_is_not_known_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.name = 'gsm9k': must be one of .*; did you mean gsm8k"):
        verifiable_reward("gsm9k")


def test_it_has_a_name_and_survives_a_pickle() -> None:
    reward = pickle.loads(pickle.dumps(verifiable_reward("own-number", "gold")))
    assert reward.__name__ == "own-number_reward"
    assert reward_of(reward, said("12"), [12]) == [1.0]


def test_numbers_are_answers_too() -> None:
    task = LoadedTask(TaskConfig(), TASKS["own-number"], ())
    assert reward_of(verifiable_reward(task), said("\\boxed{0.5}", "7"), [0.5, 7]) == [1.0, 1.0]


# TRL's own trainer


def test_trls_own_trainer_trains_on_both(tiny_model: Path, tmp_path: Path) -> None:
    from trl import GRPOConfig, GRPOTrainer

    rows = load_task("arithmetic", split="train", levels=["sub-1"], n=8).prompt_rows()
    dataset = mix_personas(Dataset.from_list(rows), mix=0.6, seed=0)
    asked: list[tuple[str | None, Any]] = []

    def watched(prompts: list[Any], completions: list[Any], persona_id: list[str | None], **columns: Any) -> list[None]:
        asked.extend(zip(persona_id, prompts, strict=True))
        return [None] * len(prompts)

    trainer = GRPOTrainer(
        model=str(tiny_model),
        reward_funcs=[verifiable_reward("arithmetic"), watched],
        train_dataset=dataset,
        args=GRPOConfig(
            output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=16, num_generations=8, max_completion_length=6,
            learning_rate=1e-3, logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, bf16=False,
            disable_tqdm=True,
        ),
    )  # fmt: skip
    trainer.train()
    steps = [line for line in trainer.state.log_history if "reward" in line]
    assert len(steps) == 2
    for line in steps:
        assert 0 <= line["rewards/arithmetic_reward/mean"] <= 1
        assert line["reward"] == line["rewards/arithmetic_reward/mean"]
        assert line["arithmetic_reward/unscored"] == 0
    known = {row["question_id"]: row for row in dataset.to_list()}
    assert len(asked) == 32
    for persona, prompt in asked:
        assert (persona is None) == (prompt[0]["role"] == "user")
        assert prompt in [row["prompt"] for row in known.values() if row["persona_id"] == persona]
