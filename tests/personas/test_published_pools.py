"""Persona files as people have them: what is read without an option, what with one, and what is refused."""

import base64
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from permix import cli
from permix.config import PersonasConfig
from permix.errors import DataError
from permix.personas.loading import build_personas, read_personas, read_pool_file
from permix.personas.pool import PersonaPool, load_pool, select_personas
from permix.prompts import persona_message
from permix.types import Persona

CARD = {
    "name": "Mira",
    "description": "{{char}} is a clockmaker.\n{{// a note}}She trusts tools more than {{user}}.",
    "personality": "dry, exact",
    "scenario": "{{User}} brings <BOT> a watch.",
    "first_mes": "*looks up* What is it?",
    "mes_example": "<START>\n{{user}}: Hi",
}
CARD_TEXT = (
    "You are Mira.\n\nMira is a clockmaker.\nShe trusts tools more than the user.\n\nPersonality: dry, exact\n\n"
    "Scenario: The user brings Mira a watch."
)
BO, BO_TEXT = {**CARD, "name": "Bo"}, CARD_TEXT.replace("Mira", "Bo")
V2 = {
    "spec": "chara_card_v2",
    "spec_version": "2.0",
    "data": {**CARD, "system_prompt": "", "tags": ["craft; fine", "craft fine"]},
}
V3 = {
    "spec": "chara_card_v3",
    "spec_version": "3.0",
    "data": {**CARD, "nickname": "Mi", "system_prompt": "{{original}}Be {{char}}."},
}


def write(path: Path, content: object) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def png(**chunks: str) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    texts = [chunk(b"tEXt", key.encode() + b"\0" + base64.b64encode(text.encode())) for key, text in chunks.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", b"\0" * 13), *texts, chunk(b"IEND", b"")])


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("hub.jsonl", '{"persona": "A beekeeper."}\n{"persona": "A referee"}\n', ["A beekeeper.", "A referee"]),
        ("tool.jsonl", '{"input persona": "A fan", "synthesized text": "x", "description": "tools"}\n', ["A fan"]),
        ("list.json", '["a sailor", "a cook"]', ["a sailor", "a cook"]),
        ("objects.json", [{"name": "Mira", "persona": "a clockmaker"}], ["a clockmaker"]),
        ("wrapped.json", {"personas": [{"persona": "a clockmaker", "age": 3}]}, ["a clockmaker"]),
        ("one.json", {"name": "Mira", "persona": "a clockmaker"}, ["a clockmaker"]),
        ("names.json", {"Mira": "a clockmaker", "Bo": "a baker"}, ["a clockmaker", "a baker"]),
        ("desc.json", {"Mira": {"desc": "a clockmaker", "catchphrases": ["Tick"]}}, ["a clockmaker"]),
        ("profiles.json", {"小米": {"性别": "女", "爱好": ["钟", "书"], "空": ""}}, ["性别: 女\n爱好: 钟, 书"]),
        ("bench.json", [{"character_name": "Li", "character_profile": "a star", "dialogue": [{"turn": 1}]}] * 3, ["a star"]),
        ("table.json", {"persona": {"0": "a sailor", "1": "a cook"}}, ["a sailor", "a cook"]),
        ("single.jsonl", '{"who": "a sailor", "name": "Bo"}', ["a sailor"]),
        ("mac.csv", b"bio;age\ra sailor;3\ra cook;4\r", ["a sailor", "a cook"]),
        ("chat.jsonl", {"personality": ["i like to ski.", "i hate mondays."]}, ["i like to ski.\ni hate mondays."]),
        ("macro.jsonl", {"name": "Bo", "profile": "{{CHAR}}, who guards <USER>"}, ["Bo, who guards the user"]),
        ("act.csv", '"act","prompt"\n"Sailor","I want you to act as a sailor."\n', ["I want you to act as a sailor."]),
        ("v1.json", CARD, [CARD_TEXT]),
        ("v2.json", V2, [CARD_TEXT]),
        ("v3.json", V3, [CARD_TEXT.replace("You are Mira", "Be Mi").replace("Mira", "Mi")]),
        ("cards.json", [V2, BO], [CARD_TEXT, BO_TEXT]),
        ("old.json", {"char_name": "Bo", "char_persona": "{{char}} bakes.", "world_scenario": ""}, ["You are Bo.\n\nBo bakes."]),
        ("card.png", png(chara=json.dumps(V2)), [CARD_TEXT]),
        ("both.png", png(chara=json.dumps(V2), ccv3=json.dumps({"spec": "chara_card_v3", "data": BO})), [BO_TEXT]),
    ],
)  # fmt: skip
def test_files_as_published_are_read_without_an_option(tmp_path: Path, name: str, content: object, texts: list[str]) -> None:
    personas, notes = read_pool_file(write(tmp_path / name, content))
    assert [one.text for one in personas] == texts
    assert {one.whole_prompt for one in personas} == {texts[0].startswith(("You are", "Be ", "I want"))}
    assert bool(notes) == (name != "list.json")


@pytest.mark.parametrize(
    ("name", "content", "persona"),
    [
        ("own.csv", "ID,System\nada,Be Ada.\n", Persona(id="ada", text="Be Ada.", whole_prompt=True)),
        ("own.csv", "Id;TEXT;Tags;Weight\nada;a banker;x|y;2\n", Persona(id="ada", text="a banker", tags=("x", "y"), weight=2)),
        ("hub.csv", "Persona,Age\na banker,3\n", Persona(id="derived", text="a banker")),
        ("act.csv", "Act,Prompt\nBanker,Be a banker.\n", Persona(id="Banker", text="Be a banker.", whole_prompt=True)),
        ("prompts.jsonl", '{"Name": "Bo", "SystemPrompt": "Be Bo.", "x": 1}', Persona(id="Bo", text="Be Bo.", whole_prompt=True)),
        ("one.json", {"ID": "ada", "Text": "a banker"}, Persona(id="ada", text="a banker")),
        # A column under its exact name goes before one that differs in case.
        ("both.jsonl", '{"persona": "a banker", "Text": "no persona", "ID": "ada"}', Persona(id="ada", text="a banker")),
        ("bio.csv", "Bio,About\nx,a banker\n", Persona(id="derived", text="a banker")),
    ],
)  # fmt: skip
def test_the_case_of_column_names_is_ignored(tmp_path: Path, name: str, content: object, persona: Persona) -> None:
    found = read_personas(write(tmp_path / name, content), "ABOUT" if name == "bio.csv" else None)
    assert found == (persona.model_copy(update={"id": found[0].id if persona.id == "derived" else persona.id}),)


def test_a_folder_of_cards_is_a_pool(tmp_path: Path) -> None:
    write(tmp_path / "a.png", png(chara=json.dumps(V2)))
    write(tmp_path / "b.json", BO)
    write(tmp_path / "readme.txt", "x")
    pool = load_pool(tmp_path)
    assert [(one.id, one.tags) for one in pool.personas] == [("Bo", ()), ("Mira", ("craft fine",))]


def test_a_name_is_the_id_unless_two_are_equal(tmp_path: Path) -> None:
    same = [{"name": "Mira", "persona": "a cook"}, {"name": "Mira", "persona": "a spy"}]
    assert [one.id for one in read_personas(write(tmp_path / "a.json", [same[0], {**same[1], "name": "Bo"}]))] == ["Mira", "Bo"]
    assert [one.id.rpartition("-")[0] for one in read_personas(write(tmp_path / "b.json", same))] == ["a-cook", "a-spy"]
    assert read_personas(write(tmp_path / "c.json", [{"id": 7, "persona": "a cook"}]))[0].id == "7"


def test_a_column_is_named(tmp_path: Path) -> None:
    rows = [{"role": "Mira", "data": {"bio": "a cook"}, "note": "x", "tags": "x; y", "weight": "2", "split": "train"}]
    path = write(tmp_path / "p.jsonl", rows[0])
    persona = read_personas(path, "data.bio")[0]
    assert persona == Persona(id="Mira", text="a cook", tags=("x", "y"), weight=2, split="train")
    chosen = select_personas(PersonasConfig(pool=str(path), column="data.bio", split="train"))
    assert chosen.personas == (persona,)
    parquet = tmp_path / "p.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet)
    assert read_personas(parquet, "data.bio") == (persona,)
    assert read_personas(write(tmp_path / "q.csv", "who;about\nBo;a baker\n"), "about")[0].text == "a baker"


@pytest.mark.parametrize(
    ("name", "content", "column", "message"),
    [
        ("p.csv", "about,age\na,3\n", None, r"p\.csv:1: no column 'text'.*--personas\.column NAME\); columns: about, age"),
        ("p.jsonl", '{"desc": "a", "bio": "b"}', None, r"several columns may hold the texts \(desc, bio\).*columns: desc, bio"),
        ("p.csv", "Text,text\na,b\n", None, r"p\.csv:1: the columns 'text' and 'Text' differ in case only; rename one of them"),
        ("p.csv", "ID,persona,Id\na,b,c\n", None, r"the columns 'ID' and 'Id' differ in case only; rename one of them"),
        ("p.csv", "BIO,Bio\na,b\n", "bio", "personas.column = 'bio': the columns 'BIO' and 'Bio' differ in case only"),
        ("p.csv", "About,Age\na,3\n", None, r"--personas\.column NAME\); columns: About, Age"),
        ("p.csv", "bio,age\na,3\n", "bios", "personas.column = 'bios': no row has such a column; columns: bio, age"),
        ("p.jsonl", '{"persona": "a"}\n{"persona": null}\n', None, r"p\.jsonl:2: persona is missing"),
        ("p.jsonl", '{"persona": 7}', None, r"p\.jsonl:1: text = 7: must be a text"),
        ("p.jsonl", '{"persona": " "}', None, "must be a text that is not empty"),
        ("p.jsonl", '{"text": "a cook", "source": "x"}', None, "unknown key 'source'"),
        ("p.json", "{", None, r"p\.json:1: not JSON"),
        ("p.json", "[\n7]", None, "row 1: 7 is neither a text nor an object"),
        ("p.json", "7", None, "must be a list of texts or objects"),
        ("p.json", "[]", None, "contains no persona"),
        ("p.json", {"name": "Mira", "description": "", "first_mes": "Hi"}, None, "the card has no text in system_prompt, desc"),
        ("p.json", {"name": "Mira", "description": 7, "first_mes": "Hi"}, None, "description = 7: must be a text"),
        ("p.png", b"\x89PNG\r\n\x1a\n", None, "not a character card: the PNG has no text chunk 'ccv3' or 'chara'"),
        ("p.png", b"JFIF", None, "not a character card"),
        ("p.png", png(chara="7"), None, "is not a character card: 7"),
        ("p.parquet", b"PAR1", None, "not a Parquet file"),
        ("p.csv", "a sailor\na cook\n", None, r"p\.csv:1: no column 'text'.*columns: a sailor"),
        ("p.csv", "id,text\na,\n", None, r"p\.csv:2: text is missing"),
        ("p.csv", "text\n" + "a" * 200_000, None, r"p\.csv:2: not valid CSV: field larger than field limit"),
        ("p.csv", "text\na \0 cook\n", None, r"p\.csv:2: .*(NUL|U\+0000)"),
    ],
)  # fmt: skip
def test_what_is_unclear_or_broken_is_refused(
    tmp_path: Path, name: str, content: object, column: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_personas(write(tmp_path / name, content), column)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_encodings_and_separators(tmp_path: Path, encoding: str, separator: str) -> None:
    lines = f"text{separator}tags{separator}\r\n\r\na café owner{separator}sea{separator}1\r\n"
    assert read_personas(write(tmp_path / "p.csv", lines.encode(encoding)))[0].text == "a café owner"
    row = json.dumps({"text": "a café owner"}, ensure_ascii=False).encode(encoding)
    assert read_personas(write(tmp_path / "p.jsonl", row))[0].text == "a café owner"


def test_repeated_texts_of_a_published_file_are_read_once(tmp_path: Path) -> None:
    personas, notes = read_pool_file(write(tmp_path / "p.jsonl", '{"persona": "A cook"}\n{"persona": "a  cook"}\n'))
    assert [one.text for one in personas] == ["A cook"]
    assert "1 rows repeat an earlier text and are left out, such as" in notes[1]


AVA = "You are Ava, the assistant of a bike shop. Be brief..."


def test_whole_prompts_are_kept_as_they_are(tmp_path: Path) -> None:
    rows = f'{{"text": "{AVA} "}}\n{{"system": "# Role\\nBe kind..."}}\n{{"text": "you\'re Bo"}}\n'
    personas = read_personas(write(tmp_path / "p.jsonl", rows))
    assert [one.text for one in personas] == [AVA, "# Role\nBe kind...", "you're Bo"]
    assert all(one.whole_prompt for one in personas)
    for template in ("you_are", "{persona}"):
        assert [persona_message(one, "?", template)["content"] for one in personas] == [one.text for one in personas]
    assert build_personas(personas) == personas
    assert build_personas([AVA, {"system": "# Role\nBe kind..."}])[1] == personas[1]


def test_a_persona_that_is_no_whole_prompt_is_recorded_as_before() -> None:
    assert Persona(id="x", text="a cook").model_dump_json() == '{"id":"x","text":"a cook","tags":[],"split":null,"weight":1.0}'
    assert PersonaPool(personas=(Persona(id="x", text="a cook"),)).fingerprint == "e61e355308cd1118"


def test_the_command_shows_what_was_read_and_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "p.csv", "who,about\nBo,Act as a baker\nMira,A cook\n")
    assert cli.run_cli(["personas", "--pool", str(path), "--column", "about"]) == 0
    out, err = capsys.readouterr()
    assert "personas are read from column 'about'; not used: who" in err
    assert "1 of 2 personas do not complete its sentence" in err
    assert "the system message of a-cook" in out
    assert "You are a cook." in out


def test_all_card_tags_become_tags(tmp_path: Path) -> None:
    card: dict[str, Any] = {**CARD, "tags": ["a|b", "", 7, " a b ", "c"]}
    assert read_personas(write(tmp_path / "c.json", card))[0].tags == ("a b", "c")


def test_equal_texts_under_two_ids_are_noted_with_both_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my.csv"
    path.write_text("id,text\na,a baker\nb,a diver\nc,A  Baker\nd,a baker\n")
    assert len(load_pool(path)) == 4
    assert " ".join(capsys.readouterr().err.split()) == (
        f"note: {path}:4: persona 'c' has the text of 'a' at {path}:2, so one text counts as two personas; remove one of them; "
        "2 personas repeat an earlier text"
    )
    path.write_text("id,text\na,a baker\nb,a diver\n")
    load_pool(path)
    assert capsys.readouterr().err == ""
