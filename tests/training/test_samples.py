"""Packing: every rollout once, prompts together, budgets kept."""

from hypothesis import given
from hypothesis import strategies as st

from permix.training.rollouts import Sample, build_prompt_group, pack_samples


def sample(prompt: int, length: int) -> Sample:
    """A rollout of prompt number `prompt`, which has `prompt` tokens."""
    return Sample(tuple([prompt] * prompt), list(range(length)), 1.0)


def test_rollouts_of_a_prompt_share_its_tokens_by_hand() -> None:
    # Prompt 5 with completions of 3, 4 and 1 read 5 + 2 + 3 + 0 = 10 tokens; prompt 2 with 6 reads 2 + 5 = 7.
    samples = [sample(5, 3), sample(2, 6), sample(5, 4), sample(5, 1)]
    assert [[[len(one.completion) for one in own] for own in each.by_prompt] for each in pack_samples(samples, 17)] == [
        [[3, 4, 1], [6]]
    ]
    assert [[[len(one.completion) for one in own] for own in each.by_prompt] for each in pack_samples(samples, 16)] == [
        [[3, 4, 1]],
        [[6]],
    ]
    # Of 9 tokens the prompt takes 5: 2 for the first leaves 2, too few for 3.
    assert [[[len(one.completion) for one in own] for own in each.by_prompt] for each in pack_samples(samples, 9)] == [
        [[3]],
        [[4, 1]],
        [[6]],
    ]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), max_size=20), st.integers(1, 40))
def test_every_rollout_is_packed_once_and_no_pack_is_over_budget_but_a_lone_rollout(
    shapes: list[tuple[int, int]], budget: int
) -> None:
    samples = [sample(*shape) for shape in shapes]
    packs = pack_samples(samples, budget)
    packed = [id(one) for each in packs for own in each.by_prompt for one in own]
    assert sorted(packed) == sorted(map(id, samples))
    for each in packs:
        cost = sum(build_prompt_group(own).forward_tokens for own in each.by_prompt)
        assert cost == each.forward_tokens
        assert cost <= budget or len(each.samples) == 1
        assert all(len({one.prompt for one in own}) == 1 for own in each.by_prompt)
