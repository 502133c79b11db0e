"""The persona pool: what the built-in one promises, what a bad file is told, and that order never decides."""

import csv
import json
import random
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from permix.config import PersonasConfig
from permix.errors import ConfigError, DataError
from permix.personas.loading import BUILTIN_KINDS, load_roleplay, read_personas
from permix.personas.pool import (
    NEAR_DUPLICATE_THRESHOLD,
    PersonaPool,
    check_pool_split,
    describe_pool,
    load_pool,
    near_duplicate_pairs,
    persona_kind,
    select_personas,
    split_pool,
)
from permix.types import SPLITS, Persona, Split, canonical_text, digest


@pytest.fixture(scope="module")
def builtin() -> PersonaPool:
    return load_pool("builtin")


def people(*texts: str, tag: str = "x", split: Split | None = None) -> list[Persona]:
    return [Persona(id=f"{tag}{n}", text=text, tags=(tag,), split=split) for n, text in enumerate(texts)]


def find_near_duplicates(
    personas: Sequence[Persona], threshold: float = NEAR_DUPLICATE_THRESHOLD
) -> list[tuple[str, str, float]]:
    """(id, id, similarity) of all near-duplicates, the most similar first, then by id."""
    pairs = ((min(a.id, b.id), max(a.id, b.id), value) for a, b, value in near_duplicate_pairs(personas, threshold))
    return sorted(pairs, key=lambda near: (-near[2], *near[:2]))


TRADE_NAMES = "baker judge miner nurse tailor weaver plumber jockey fencer potter roofer banker dancer farrier glazier cooper"
TRADES = TRADE_NAMES.split()


def trades(tag: str, count: int) -> list[Persona]:
    return people(*(f"a {trade} from {tag * 5}" for trade in TRADES[:count]), tag=tag)


# --- the built-in pool


def test_builtin_counts_by_kind_and_split(builtin: PersonaPool) -> None:
    assert len(builtin) == 108
    assert Counter((persona_kind(persona), persona.split) for persona in builtin.personas) == Counter(
        {(name, split): count for name in BUILTIN_KINDS for split, count in (("train", 12), ("dev", 6), ("heldout", 9))}
    )


HELDOUT = """
    astronomer land-surveyor schoolteacher meteorologist archaeologist painting-restorer beekeeper perfumer mountain-guide
    carpenters-apprentice bicycle-renter video-knitter cinema-usher call-centre-worker weekend-hiker car-mechanic laundry-owner
    window-bird-watcher cave-dweller rounding-shopkeeper self-styled-genius vague-poet evasive-spokesman bored-bureaucrat
    toothache-sufferer panicking-contestant copycat rhyming-bard excited-puppy melting-snowman shouting-commentator
    leonardo-da-vinci cockney-chimney-sweep giggling-gnome bubbly-cheerleader riddling-hermit
"""


def test_builtin_held_out_personas_never_change(builtin: PersonaPool) -> None:
    assert [persona.id for persona in read_personas("builtin") if persona.split == "heldout"] == HELDOUT.split()
    assert builtin.in_split("heldout").fingerprint == "0e95800b03f71217"


def test_builtin_dev_side_is_spread_over_each_kind_like_the_others(builtin: PersonaPool) -> None:
    for name in BUILTIN_KINDS:
        known = [one.split for one in read_personas("builtin") if persona_kind(one) == name and one.split != "heldout"]
        assert len(known) == 18
        assert [known[third : third + 6].count("dev") for third in (0, 6, 12)] == [2, 2, 2]
    for tag, least in (("numbers", 2), ("wrong", 1), ("unwilling", 2), ("distracted", 2), ("work", 4), ("historical", 1)):
        for split in SPLITS:
            assert len(builtin.in_split(split).select(include_tags=[tag])) >= least, (tag, split)


def test_builtin_personas_have_exactly_one_kind_and_kebab_ids(builtin: PersonaPool) -> None:
    for persona in builtin.personas:
        assert len(set(persona.tags) & set(BUILTIN_KINDS)) == 1, persona
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", persona.id)


def test_builtin_texts_complete_you_are(builtin: PersonaPool) -> None:
    for persona in builtin.personas:
        assert re.match(r"(a|an|the) \w", persona.text), persona.text
        assert re.match(r"an? ", persona.text) is None or persona.text.startswith("an ") == (
            persona.text.split()[1][0] in "aeio"
        ), persona
        assert persona.text[-1] not in ".!,"
        assert not any(unicodedata.category(char) == "Cc" for char in persona.text)


def test_builtin_personas_are_far_from_near_duplicates(builtin: PersonaPool) -> None:
    check_pool_split(builtin)
    assert find_near_duplicates(builtin.personas, threshold=0.45) == []


def test_a_third_of_the_experts_of_every_side_reckons(builtin: PersonaPool) -> None:
    counts = {split: Counter(tag for one in builtin.in_split(split).personas for tag in one.tags) for split in SPLITS}
    assert {split: (count["numbers"], count["expert"]) for split, count in counts.items()} == {
        "train": (4, 12), "dev": (2, 6), "heldout": (3, 9)
    }  # fmt: skip


def test_roleplay_questions_are_distinct_open_and_without_gold() -> None:
    heldout, train, dev = (load_roleplay(split=split) for split in ("heldout", "train", "dev"))
    assert (len(heldout), len(train), len(dev)) == (52, 48, 20)
    questions = (*heldout, *train, *dev)
    assert [question.id for question in questions] == [f"r{n:02}" for n in range(1, 121)]
    assert len({canonical_text(question.text) for question in questions}) == 120
    assert {(question.task, question.gold) for question in questions} == {("roleplay", "")}


def test_the_held_out_roleplay_questions_never_change() -> None:
    questions = load_roleplay()
    assert (questions[0].text, questions[-1].text) == ("What did you do this morning?", "Tell me a secret.")
    assert digest(*(question.id + question.text for question in questions)) == "8dbd8371f946c704"


def test_no_roleplay_question_rewords_one_of_another_side() -> None:
    asked = [
        Persona(id=question.id, text=question.text, split=split) for split in SPLITS for question in load_roleplay(split=split)
    ]
    near = {one[:2] for one in find_near_duplicates(asked, threshold=0.6)}
    # All four among the held-out ones: "What makes you laugh?" and "What makes you angry?", and three such pairs.
    assert near == {("r17", "r35"), ("r02", "r11"), ("r05", "r30"), ("r13", "r47")}


# --- loading: what is accepted


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


SAME = {
    "p.toml": '[[persona]]\ntext = "a baker"\ntags = ["x", "y"]\nsplit = "train"\nweight = 2\n'
    '[[persona]]\nid = "n"\ntext = "a nurse"\n',
    "p.jsonl": '{"text": "a baker", "tags": ["x", "y"], "split": "train", "weight": 2}\n\n'
    '{"id": "n", "text": "a nurse", "split": null}\n',
    "p.csv": "id,text,tags,split,weight\n,a baker,x;y,train,2\n\nn,a nurse,,,\n",
    "q.csv": 'id,text,tags,split,weight\n,"a baker",x | y,train,2.0\nn,a nurse,,,\n',
}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize(
    "dress", [lambda text: text, lambda text: "\ufeff" + text.replace("\n", "\r\n")], ids=["plain", "bom-crlf"]
)
def test_formats_agree(tmp_path: Path, name: str, dress: Callable[[str], str]) -> None:
    baker, nurse = load_pool(write(tmp_path / name, dress(SAME[name]))).personas
    assert baker == Persona(id=baker.id, text="a baker", tags=("x", "y"), split="train", weight=2.0)
    assert re.fullmatch(r"a-baker-[0-9a-f]{8}", baker.id)
    assert nurse == Persona(id="n", text="a nurse")


def test_text_may_hold_newlines_and_tabs(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", 'text\n"a baker\r\n\twho hums"\n')
    assert load_pool(path).personas[0].text == "a baker\n\twho hums"


def test_toml_lines_survive_a_header_inside_a_string(tmp_path: Path) -> None:
    path = write(tmp_path / "p.toml", '[[persona]]\ntext = """\na baker\n[[persona]]\n"""\n\n[[ persona ]]\ntext = 3\n')
    with pytest.raises(DataError, match=r"p\.toml:7: text = 3"):
        load_pool(path)


SIDED = [{"text": "Who?", "split": "train"}, {"text": "Where?", "split": "dev"}, {"text": "Why?", "split": "train"}]


@pytest.mark.parametrize("name", ["q.toml", "q.jsonl"])
def test_a_file_of_questions_may_have_sides(tmp_path: Path, name: str) -> None:
    tables = "".join(f"[[question]]\ntext = '{row['text']}'\nsplit = '{row['split']}'\n" for row in SIDED)
    path = write(tmp_path / name, tables if name == "q.toml" else "\n".join(map(json.dumps, SIDED)))
    assert [question.text for question in load_roleplay(path, "train")] == ["Who?", "Why?"]
    assert [question.text for question in load_roleplay(path, "dev")] == ["Where?"]
    with pytest.raises(ConfigError, match=r"'heldout': has none of the 3 questions \(train 2, dev 1, heldout 0\)"):
        load_roleplay(path)


@pytest.mark.parametrize("split", SPLITS)
def test_a_file_of_questions_without_sides_is_asked_whole(tmp_path: Path, split: Split) -> None:
    assert len(load_roleplay(write(tmp_path / "q.txt", "Who?\nWhere?\n"), split)) == 2


def test_roleplay_from_text_lines_and_tables(tmp_path: Path) -> None:
    lines = load_roleplay(write(tmp_path / "q.txt", "\ufeffWho are you?\r\n\r\nWhere do you live?\r\n"))
    tables = load_roleplay(
        write(tmp_path / "q.toml", '[[question]]\ntext = "Who are you?"\n[[question]]\ntext = "Where do you live?"\n')
    )
    assert lines == tables
    assert [question.text for question in lines] == ["Who are you?", "Where do you live?"]


json_texts = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=30).filter(
    lambda text: (
        bool(text.strip()) and not re.search("[\u202a-\u202e\u2066-\u2069]", text) and not text.strip().lower().startswith("you")
    )
)
names = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=8)
random_personas = st.lists(
    st.builds(
        Persona,
        id=names,
        text=json_texts.map(str.strip),
        tags=st.lists(names, max_size=3, unique=True).map(tuple),
        weight=st.floats(1e-6, 1e6),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda persona: persona.id,
)


@settings(max_examples=60, deadline=None)
@given(personas=random_personas)
def test_round_trip_through_jsonl_and_csv(tmp_path_factory: pytest.TempPathFactory, personas: list[Persona]) -> None:
    folder = tmp_path_factory.mktemp("pool")
    pool = PersonaPool(personas=tuple(personas))
    write(folder / "p.jsonl", "".join(persona.model_dump_json() + "\n" for persona in personas))
    with (folder / "p.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "text", "tags", "weight"])
        rows.writerows([persona.id, persona.text, ";".join(persona.tags), repr(persona.weight)] for persona in personas)
    for name in ("p.jsonl", "p.csv"):
        again = load_pool(folder / name)
        assert again == pool
        assert again.fingerprint == pool.fingerprint


# --- loading: what is refused, and where

ROW = '[[persona]]\ntext = "a baker"\n'
BAD = [
    ("p.toml", "", 1, "contains no persona"),
    ("p.jsonl", "\n\n", 1, "contains no persona"),
    ("p.csv", "text\n", 1, "contains no persona"),
    ("p.toml", ROW + "\n[[persona]]\ntags = []\n", 4, "text is missing"),
    ("p.toml", ROW + "\n# note\n[[persona]]\ntxt = 'x'\n", 5, "unknown key 'txt'; did you mean 'text'"),
    ("p.toml", ROW + "[[persona]]\ntext = ' '\n", 3, "text = ' ': must be a text"),
    ("p.toml", ROW + "[[persona]]\ntext = 'a nurse'\nweight = 0\n", 3, "weight = 0: must be a number above 0"),
    ("p.toml", ROW + "weight = nan\n", 1, "weight = nan"),
    ("p.toml", ROW + "weight = true\n", 1, "weight = True"),
    ("p.toml", ROW + "tags = 'x'\n", 1, "tags = 'x': must be a list"),
    ("p.toml", ROW + "tags = ['x', 'x']\n", 1, "distinct"),
    ("p.toml", ROW + "split = 'test'\n", 1, 'split = \'test\': must be "train", "dev" or "heldout"'),
    ("p.toml", ROW + "[[persona]]\ntext = \n", 4, "not valid TOML"),
    ("p.toml", ROW + "[[personas]]\ntext = 'a nurse'\n", 3, "unknown key 'personas'.*did you mean 'persona'"),
    ("p.toml", "\npersona = [{text = 'a baker'}]\n", 2, r"\[\[persona\]\] tables"),
    ("p.toml", "[persona]\ntext = 'a baker'\n", 1, r"\[\[persona\]\] tables"),
    ("p.toml", ROW + ROW, 3, "used before at .*p.toml:1"),
    ("p.toml", ROW + "id = 'b'\n[[persona]]\ntext = 'a nurse'\nid = 'b'\n", 4, "id = 'b': used before at .*p.toml:1"),
    ("p.toml", ROW + "[[persona]]\ntext = 'a nurse'\nsystem = 'You are a nurse'\n", 3, "has both text and system"),
    ("p.toml", ROW + "[[persona]]\nsystem = ' '\n", 3, "system = ' ': must be a text"),
    ("p.jsonl", '{"text": "a baker"}\n\n{"text": "a nurse"\n', 3, "not valid JSON"),
    ("p.jsonl", '{"text": "a baker"}\n["a nurse"]\n', 2, "is not an object"),
    ("p.jsonl", '{"text": "a baker", "text": "a nurse"}\n', 1, "key 'text' occurs twice"),
    ("p.jsonl", '{"text": "a \\u001b[31mbaker"}\n', 1, "U\\+001B at character 3"),
    ("p.jsonl", '{"text": "a \\ud800 baker"}\n', 1, "U\\+D800"),
    ("p.jsonl", '{"text": "a \\u202e baker"}\n', 1, "U\\+202E"),
    ("p.jsonl", '{"text": "a baker", "id": "a\\nb"}\n', 1, "id = 'a\\\\nb'"),
    ("p.jsonl", '{"text": "a baker", "weight": 1e999}\n', 1, "weight = inf"),
    ("p.jsonl", '{"text": "a baker", "weight": ' + "9" * 5000 + "}\n", 1, "not valid JSON"),
    ("p.jsonl", "[" * 100_000, 1, "not valid JSON"),
    ("p.toml", ROW + "weight = " + "9" * 5000, 1, "not usable TOML"),
    ("p.csv", "text,tags\na baker,x\na nurse,x,y\n", 3, "3 cells for 2 columns"),
    ("p.csv", 'text,weight\n"a baker\nwho hums",1\na nurse,heavy\n', 4, "weight = 'heavy'"),
    ("p.csv", "text,wieght\na baker,1\n", 2, "unknown key 'wieght'; did you mean 'weight'"),
    ("p.csv", "name,tags\na baker,x\n", 1, "no column 'text'"),
    ("p.csv", "text,text\na baker,x\n", 1, "a column occurs twice"),
    ("p.csv", 'text\n"a baker\n', 2, "not valid CSV"),
    ("p.csv", b"text\na baker\na caf\xe9 owner\n", 3, "byte 0xe9 is not UTF-8"),
]


@pytest.mark.parametrize(("name", "content", "line", "message"), BAD, ids=[f"{n}-{row[0]}" for n, row in enumerate(BAD)])
def test_bad_files_are_told_where_and_why(tmp_path: Path, name: str, content: str | bytes, line: int, message: str) -> None:
    with pytest.raises(DataError, match=rf"{name}:{line}: (?s:.*){message}"):
        load_pool(write(tmp_path / name, content))


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing.toml", "no such file"), ("folder.toml", "a directory"), ("p.yaml", "unknown suffix '.yaml'; valid: .toml")],
)
def test_bad_paths(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.toml").mkdir()
    write(tmp_path / "p.yaml", "x")
    with pytest.raises(DataError, match=message):
        load_pool(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "line", "message"),
    [
        ("q.txt", "Who are you?\n\nwho  are you?\n", 3, "repeats .*q.txt:1"),
        ("q.toml", "[[question]]\ntext = 'Who?'\ngold = '3'\n", 1, "unknown key 'gold'"),
        ("q.toml", "[[persona]]\ntext = 'Who?'\n", 1, "unknown key 'persona'"),
        ("q.toml", "[[question]]\ntext = 'Who?'\nsplit = 'test'\n", 1, "split = 'test': must be"),
        ("q.jsonl", '{"text": "Who?"}\n{"text": "Why?", "split": "dev"}\n', 1, "split is missing, but other questions have one"),
        ("q.jsonl", '{"text": "Who?", "split": "dev"}\n{"text": "Why?"}\n', 2, "split is missing, but other questions have one"),
        ("q.txt", " \n", 1, "contains no question"),
    ],
)
def test_bad_roleplay_files(tmp_path: Path, name: str, content: str, line: int, message: str) -> None:
    with pytest.raises(DataError, match=rf"{name}:{line}: (?s:.*){message}"):
        load_roleplay(write(tmp_path / name, content))


@pytest.mark.parametrize("sides", [("train", "heldout"), ("train", "dev"), ("dev", "heldout")])
def test_load_refuses_a_violated_split(tmp_path: Path, sides: tuple[Split, Split]) -> None:
    rows = [
        {"id": "old", "text": "a grumpy old pirate who hates all numbers", "split": sides[0]},
        {"id": "new", "text": "a grumpy pirate who hates numbers", "split": sides[1]},
    ]
    with pytest.raises(DataError, match=rf"'new'.*{sides[1]}.*'old'.*{sides[0]}.*near-duplicates.*different splits"):
        load_pool(write(tmp_path / "p.jsonl", "\n".join(map(json.dumps, rows))))


# --- near-duplicates

SAME_PERSON = [
    ("a grumpy pirate who hates numbers", "a grumpy old pirate who hates all numbers"),
    ("a grumpy pirate who hates numbers", "a grumpy pirate that hated number"),
    (
        "a bus driver from Leeds who knows every regular passenger",
        "The bus driver from Leeds who knows all the regular passengers",
    ),
    ("a rusty robot who says beep and boop", "a rusty old robot that says beep, boop"),
    ("a high-school physics teacher", "A high school  physics teacher"),
    ("a mathematician who checks every step twice", "a mathematicain who checks every step twice"),
    ("eine müde Köchin, die Zahlen hasst", "eine sehr müde Köchin, die alle Zahlen hasst"),
    ("a toddler", "a toddler"),
    ("🙂", "🙂"),
]
OTHER_PERSON = [
    ("a grumpy pirate who hates numbers", "a grumpy neighbour who hates numbers"),
    ("an expert in physics", "an expert in chemistry"),
    ("a history teacher", "a geography teacher"),
    ("a bus driver from Leeds", "a truck driver from Leeds"),
    ("a professional poker player", "a professional tennis player"),
    ("a high school student interested in robotics", "a high school student interested in painting"),
    ("a cheerful baker from Lyon", "a gloomy baker from Lyon"),
    ("a person who always lies", "a person who always yawns"),
    ("a robot", "a robber"),
    ("a pirate", "a buccaneer"),
    ("🙂", "🙃"),
]


@pytest.mark.parametrize("pair", SAME_PERSON)
def test_near_duplicates_are_caught(pair: tuple[str, str]) -> None:
    assert len(find_near_duplicates(people(*pair))) == 1


@pytest.mark.parametrize("pair", OTHER_PERSON)
def test_different_people_are_kept_apart(pair: tuple[str, str]) -> None:
    assert find_near_duplicates(people(*pair)) == []


def test_similarity_is_the_cosine_of_trigram_sets() -> None:
    # {" ca", "cat", "at "} and {" ca", "cat", "ats", "ts "} share 2: 2 / sqrt(3 * 4) = 0.577
    assert find_near_duplicates(people("cat", "cats"), threshold=0.5)[0][2] == pytest.approx(0.57735, abs=1e-5)


def test_near_duplicates_across_blocks_and_in_order() -> None:
    crowd = [Persona(id=f"p{n:03}", text=f"{n:x}{n * 7919:x} {n * 104729:x}") for n in range(600)]
    twins = [
        Persona(id="z", text="a baker who hums"),
        *crowd,
        Persona(id="a", text="a baker who hums"),
        Persona(id="b", text="baker hums on"),
    ]
    assert [near[:2] for near in find_near_duplicates(twins) if near[0] in "abz"] == [("a", "b"), ("a", "z"), ("b", "z")]


def test_near_duplicates_refuses_a_threshold_out_of_range() -> None:
    with pytest.raises(ConfigError, match="threshold = 0"):
        find_near_duplicates(people("a", "b"), threshold=0)


# --- selection and weights


def test_select_is_stratified_nested_and_independent_of_order(builtin: PersonaPool) -> None:
    shuffled = list(builtin.personas)
    random.Random(1).shuffle(shuffled)
    eight, sixteen = builtin.select(n=8, seed=3), builtin.select(n=16, seed=3)
    assert Counter(map(persona_kind, sixteen.personas)) == dict.fromkeys(BUILTIN_KINDS, 4)
    assert set(eight.personas) < set(sixteen.personas)
    assert PersonaPool(personas=tuple(shuffled)).select(n=8, seed=3) == eight
    assert builtin.select(n=8, seed=4) != eight


def test_select_by_tags(builtin: PersonaPool) -> None:
    found = builtin.select(include_tags=["expert", "character"], exclude_tags=["numbers"])
    assert set(map(persona_kind, found.personas)) == {"expert", "character"}
    assert "numbers" not in found.tags


def test_select_refuses_what_it_cannot_give(builtin: PersonaPool) -> None:
    with pytest.raises(ConfigError, match="n = 28: must be between 1 and 27"):
        builtin.select(include_tags=["expert"], n=28)
    with pytest.raises(ConfigError, match="unknown tag 'experts'; did you mean 'expert'"):
        builtin.select(include_tags=["experts"])
    with pytest.raises(ConfigError, match="no persona is left"):
        builtin.select(include_tags=["expert"], exclude_tags=["expert"])


def test_weights_multiply_by_tag_and_sum_to_one() -> None:
    pool = PersonaPool(
        personas=(
            Persona(id="a", text="a", tags=("x", "y"), weight=1),
            Persona(id="b", text="b", tags=("x",), weight=2),
            Persona(id="c", text="c", tags=("z",), weight=3),
        )
    )
    assert pool.sampling_weights() == pytest.approx((1 / 6, 2 / 6, 3 / 6))
    assert pool.sampling_weights({"x": 2, "y": 3, "z": 0}) == pytest.approx((6 / 10, 4 / 10, 0))  # 1*2*3, 2*2, 3*0
    with pytest.raises(ConfigError, match="unknown tag 'w'"):
        pool.sampling_weights({"w": 1})
    with pytest.raises(ConfigError, match=r"tag_weights\.x = -1"):
        pool.sampling_weights({"x": -1})
    with pytest.raises(ConfigError, match="largest weight is 0"):
        pool.sampling_weights({"x": 0, "z": 0})


def test_fingerprint_follows_content_not_order() -> None:
    a, b = people("a baker", "a nurse")
    pool = PersonaPool(personas=(a, b))
    assert PersonaPool(personas=(b, a)).fingerprint == pool.fingerprint
    assert PersonaPool(personas=(a, b.model_copy(update={"weight": 2.0}))).fingerprint != pool.fingerprint


def test_pool_refuses_repeated_ids() -> None:
    with pytest.raises(ValueError, match="persona id 'x0' occurs twice"):
        PersonaPool(personas=(*people("a baker"), *people("a nurse")))


# --- splitting


def sides(personas: Sequence[Persona]) -> dict[str, Split | None]:
    return {persona.id: persona.split for persona in personas}


def test_split_is_stratified_and_independent_of_order() -> None:
    personas = [*trades("q", 15), *trades("v", 6), *trades("w", 9)]
    split = split_pool(PersonaPool(personas=tuple(personas)), seed=5)
    held = Counter(persona_kind(persona) for persona in split.in_split("heldout").personas)
    assert held == {"q": 5, "v": 2, "w": 3}
    renamed = [persona.model_copy(update={"id": f"{1000 - n}"}) for n, persona in enumerate(personas)]
    again = split_pool(PersonaPool(personas=tuple(renamed)), seed=5)
    assert {p.text: p.split for p in again.personas} == {p.text: p.split for p in split.personas}
    assert sides(split_pool(PersonaPool(personas=tuple(personas)), seed=6).personas) != sides(split.personas)


@pytest.mark.parametrize(
    ("seed", "heldout"),
    [(0, "q2 q3 q6 q11 q12 v1 v2 w3 w6 w7"), (5, "q1 q5 q9 q10 q11 v3 v4 w3 w6 w7")],
)
def test_who_is_held_out_never_changes(seed: int, heldout: str) -> None:
    split = split_pool(PersonaPool(personas=(*trades("q", 15), *trades("v", 6), *trades("w", 9))), seed=seed)
    assert {persona.id for persona in split.in_split("heldout").personas} == set(heldout.split())


def test_one_in_four_that_are_not_held_out_is_dev_over_all_kinds() -> None:
    split = split_pool(PersonaPool(personas=(*trades("q", 15), *trades("v", 6), *trades("w", 9))), seed=5)
    assert Counter(persona.split for persona in split.personas) == {"train": 15, "dev": 5, "heldout": 10}
    assert Counter(map(persona_kind, split.in_split("dev").personas)) == {"q": 3, "v": 1, "w": 1}
    check_pool_split(split)


@pytest.mark.parametrize(("size", "dev"), [(2, 0), (5, 0), (6, 1), (11, 1), (12, 2)])
def test_a_pool_of_a_few_has_no_dev_side_and_says_so(size: int, dev: int) -> None:
    # Held out are 1 of 2, 2 of 5, 2 of 6, 4 of 11 and 4 of 12; a quarter of the others is 0.25, 0.75, 1, 1.75 and 2.
    split = split_pool(PersonaPool(personas=tuple(trades("q", size))))
    assert sum(persona.split == "dev" for persona in split.personas) == dev
    if not dev:
        with pytest.raises(ConfigError, match=rf"'dev': has none of the {size} personas \(train .* needs about six"):
            split.in_split("dev")


def test_split_meets_the_share_when_every_kind_has_one_persona() -> None:
    personas = [Persona(id=trade, text=f"a {trade}", tags=(trade,)) for trade in TRADES[:15]]
    assert len(split_pool(PersonaPool(personas=tuple(personas))).in_split("heldout")) == 5


@pytest.mark.parametrize("seed", range(8))
def test_split_keeps_near_duplicates_together(seed: int) -> None:
    pirates = people(
        "a grumpy pirate who hates numbers", "a grumpy old pirate who hates all numbers", "a grumpy pirate that hates number"
    )
    split = split_pool(PersonaPool(personas=(*pirates, *trades("q", 12))), seed=seed)
    assert len({persona.split for persona in split.personas if persona.id.startswith("x")}) == 1
    check_pool_split(split)


def test_split_keeps_explicit_sides_and_draws_their_kin_along() -> None:
    fixed = people("a grumpy pirate who hates numbers", tag="fix", split="heldout")
    kin = people("a grumpy old pirate who hates all numbers", tag="kin")
    split = sides(split_pool(PersonaPool(personas=(*fixed, *kin, *trades("q", 12)))).personas)
    assert split["fix0"] == split["kin0"] == "heldout"
    assert Counter(side for name, side in split.items() if name.startswith("q")) == {"train": 6, "dev": 2, "heldout": 4}


def test_an_explicit_dev_side_is_accepted_and_draws_its_kin_along(tmp_path: Path) -> None:
    rows = [{"id": "fix", "text": "a grumpy pirate who hates numbers", "split": "dev"}]
    rows += [{"id": "kin", "text": "a grumpy old pirate who hates all numbers"}]
    rows += [{"id": one.id, "text": one.text} for one in trades("q", 3)]
    path = write(tmp_path / "p.jsonl", "\n".join(map(json.dumps, rows)))
    assert [persona.id for persona in load_pool(path).in_split("dev").personas] == ["fix"]
    split = sides(split_pool(load_pool(path)).personas)
    assert {name for name, side in split.items() if side == "dev"} == {"fix", "kin"}  # and of three others none


@pytest.mark.parametrize(("split", "count"), [("train", 6), ("dev", 2), ("heldout", 4), ("all", 12)])
def test_a_users_pool_without_sides_is_asked_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str, count: int
) -> None:
    path = write(tmp_path / "p.csv", "text\n" + "".join(f"{one.text}\n" for one in trades("q", 12)))
    assert len(select_personas(PersonasConfig.model_validate({"pool": str(path), "split": split}))) == count
    told = "a third of them becomes heldout, and a quarter of the others dev"
    assert (told in capsys.readouterr().err) == (split != "all")


def test_split_refuses_a_violation_and_an_empty_side() -> None:
    train = people("a grumpy pirate who hates numbers", tag="t", split="train")
    held = people("a grumpy old pirate who hates all numbers", tag="h", split="heldout")
    with pytest.raises(DataError, match=r"'h0'.*'t0'"):
        split_pool(PersonaPool(personas=(*train, *held)))
    with pytest.raises(ConfigError, match="1 personas leave the heldout split empty"):
        split_pool(PersonaPool(personas=tuple(people("a baker"))))
    with pytest.raises(ConfigError, match="heldout_share = 1"):
        split_pool(PersonaPool(personas=tuple(people("a baker"))), heldout_share=1)


def test_side_of_an_unsplit_pool_points_to_split_pool() -> None:
    with pytest.raises(ConfigError, match=r"no split 1\); set the split in the file"):
        PersonaPool(personas=tuple(people("a baker"))).in_split("heldout")


# --- what the command line prints, and what importing costs


def test_describe_counts_and_lists_near_duplicates(builtin: PersonaPool) -> None:
    table = [line.split() for line in describe_pool(builtin).splitlines()[2:8]]
    assert table[0] == ["kind", "train", "dev", "heldout", "no", "split", "total"]
    assert table[1] == ["character", "12", "6", "9", "0", "27"]
    assert table[-1] == ["total", "48", "24", "36", "0", "108"]
    assert "total         48     24       36         0    108" in describe_pool(builtin)
    assert describe_pool(builtin).endswith("near-duplicates (similarity 0.8 or more): none")
    text = describe_pool(PersonaPool(personas=tuple(people("a toddler", "a toddler", "the toddler"))), max_pairs=2)
    assert text.endswith(f"near-duplicates (similarity {NEAR_DUPLICATE_THRESHOLD} or more): 3\n  1.00  x0  x1\n  1.00  x0  x2")


def test_import_is_light() -> None:
    heavy = "import sys, permix.personas.pool; print({'numpy', 'scipy', 'sklearn', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True).stdout == "set()\n"
