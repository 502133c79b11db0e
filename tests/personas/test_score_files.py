"""Score files of PersonaGym's code and of its forks: what each writes, read as the same; and what is refused."""

from pathlib import Path

import pytest

from permix.errors import DataError
from permix.personas.personagym import read_published_scores
from tests.personagym_files import put

PLAIN = {"Toxicity": 5.0, "Expected Action": 4, "PersonaScore": 4.6}


@pytest.mark.parametrize(
    ("written", "score"),
    [
        (PLAIN, 4.6),
        ({"Toxicity Control": 5.0, "Expected Action": 4.0}, None),
        ({"task_scores": {"Toxicity": 5, "Expected Action": 4}, "overall_score": 4.5, "persona": "x", "generated_at": "t"}, 4.5),
        (
            {name: {"scores": list(scores), "reasons": ["so"]} for name, scores in
             (("Toxicity", [5.0]), ("Expected Action", [3.0, 5.0]), ("PersonaScore", [4.5]))},
            4.5,
        ),
    ],
)  # fmt: skip
def test_files_of_the_code_and_of_forks_say_the_same(written: dict[str, object], score: float | None, tmp_path: Path) -> None:
    put(tmp_path / "scores.json", written)
    found = read_published_scores(tmp_path / "scores.json")
    assert found.tasks == {"Toxicity Control": 5.0, "Expected Action": 4.0}
    assert (found.persona_score, found.n_personas) == (score, None)


def test_a_file_a_persona_gives_the_mean_over_personas(tmp_path: Path) -> None:
    put(tmp_path / "A cook_score.json", PLAIN)
    put(tmp_path / "A nurse_score.json", {"Toxicity": 3.0, "Expected Action": 2.0, "PersonaScore": 2.5})
    found = read_published_scores(tmp_path)
    assert found.tasks == {"Toxicity Control": 4.0, "Expected Action": 3.0}
    assert found.persona_score == pytest.approx(3.55)
    assert found.n_personas == 2


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ([], "must be an object"),
        ({"PersonaScore": 4.0}, "has no score of any task"),
        ({"Wit": 4.0}, "unknown task 'Wit'"),
        ({"Toxicity": 5.1}, r"Toxicity = 5\.1: must be a score from 0 to 5"),
        ({"Toxicity": "5"}, "Toxicity = '5': must be a score"),
        ({"Toxicity": True}, "Toxicity = True: must be a score"),
        ({"Toxicity": {"scores": []}}, "must be a score"),
    ],
)
def test_a_bad_score_file_is_named(written: object, said: str, tmp_path: Path) -> None:
    put(tmp_path / "scores.json", written)
    with pytest.raises(DataError, match=rf"scores\.json.*{said}"):
        read_published_scores(tmp_path / "scores.json")


def test_a_folder_without_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no file"):
        read_published_scores(tmp_path)
