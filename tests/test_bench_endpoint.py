"""The benchmark of the HTTP client: its ideal is what the latencies allow, and every client gets all its answers."""

import json

import pytest

from bench.endpoint import cells, ideal_wall, length_in, measure, overhead, parser, serving
from bench.server import COMPLETION, SPREAD, latency_of
from permix.inference.request_body import parse_chat_completion


def test_the_ideal_fills_a_place_as_soon_as_it_is_free() -> None:
    assert ideal_wall([1.0] * 5, in_flight=2) == 3.0
    assert ideal_wall([3.0, 1.0, 1.0, 1.0], in_flight=2) == 3.0
    assert ideal_wall([1.0, 1.0, 4.0], in_flight=2) == 5.0
    assert ideal_wall([2.0], in_flight=256) == 2.0


def test_overhead_is_a_share_of_the_ideal() -> None:
    assert overhead(10.5, 10.0) == pytest.approx(0.05)
    assert overhead(10.0, 10.0) == 0.0


def test_latencies_are_the_requests_own_and_spread_around_their_mean() -> None:
    drawn = [latency_of(seed, 2.0) for seed in range(2000)]
    assert min(drawn) >= 2.0 * (1 - SPREAD)
    assert max(drawn) <= 2.0 * (1 + SPREAD)
    assert sum(drawn) / len(drawn) == pytest.approx(2.0, abs=0.05)
    assert latency_of(7 | 1 << 40, 2.0) == latency_of(7, 2.0), "only the low bits of a seed are sent"


def test_a_reply_is_as_long_as_its_head_says_and_a_completion() -> None:
    head, _, body = COMPLETION.partition(b"\r\n\r\n")
    assert length_in(head) == len(body)
    assert parse_chat_completion(body).text.endswith("\\boxed{42}.")


def test_every_client_asks_everything_and_none_beats_the_ideal(capsys: pytest.CaptureFixture[str]) -> None:
    options = parser().parse_args(["--in-flight", "8", "--rounds", "1"])
    with serving(0.02) as port:
        measure(options, cells(40), 0.02, port)
    value = {line["figure"]: line["value"] for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert value["ideal_wall_seconds"] >= 40 / 8 * 0.02 * (1 - SPREAD)
    assert all(value[f"overhead_{name}"] > 0 for name in ("bare", "client", "sdk", "grid"))
