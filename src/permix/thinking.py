r"""Separate a model's thinking from its answer.

`split_thinking` knows the blocks that public models write: `<think>...</think>` and its relatives, `[THINK]...[/THINK]`, the
channel of thought of Gemma 4, and the channels of gpt-oss with or without their special tokens. A chat template may have opened
the block in the prompt, so an end without a start counts too: all that is before it is thinking. A closed block is removed where
it stands, also behind the answer. A block that never ends leaves no answer.
"""

import re
from collections.abc import Collection
from typing import NamedTuple

_NAME = r"(?:(?:seed:|longcat_)?think(?:ing)?|thoughts?|reasoning|reflection)"

_START = re.compile(
    rf"<\|?(?:START_THINKING|begin_of_thought|inner_prefix)\|>|<{_NAME}\s*>|\[THINK\]|◁think▷|<\|channel>(?:thought\b)?",
    re.IGNORECASE,
)

_END = re.compile(
    rf"<\|?(?:END_THINKING|end_of_thought|inner_suffix)\|>|</{_NAME}\s*>|\[/THINK\]|◁/think▷|<channel\|>", re.IGNORECASE
)

# Models write these tags because a prompt asks for them, some of them around the answer itself. So they are thinking only in a
# completion that begins with one.
_ASKED_FOR = re.compile(r"\s*<(scratchpad|reason|analysis)\s*>", re.IGNORECASE)

_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>")

_CHANNEL_END = re.compile(r"<\|(?:end|return|call|start)\|>(?:assistant)?")

# gpt-oss where special tokens were skipped in decoding: the names of the roles and channels run together.
_BARE_FINAL = re.compile(r"\A(?:analysis|commentary)(?P<thinking>.*)assistantfinal(?P<answer>.*)\Z", re.DOTALL)

# The thinking follows the name without a space. "analysis of the data shows 5" is an answer: no answer is thrown away for
# thinking that begins with a space, a line break or another mark, since nobody could tell the two apart.
_BARE_ANALYSIS = re.compile(r"\Aanalysis(?=[^\W_]|[\"'“‘])")

_CHANNEL_MARKS = frozenset({"<|start|>", "<|channel|>", "<|message|>"})


class SplitCompletion(NamedTuple):
    """A completion in two parts. `unclosed`: the thinking never ends, so `answer` is empty."""

    answer: str
    thinking: str = ""
    unclosed: bool = False


def split_thinking(completion: str) -> SplitCompletion:
    """The answer and the thinking of a completion. A completion without thinking comes back unchanged. Takes linear time."""
    # Nearly all answers have no thinking; this takes a tenth of the time of the patterns below.
    if not ("<" in completion or "[" in completion or "◁" in completion or completion.startswith(("analysis", "commentary"))):
        return SplitCompletion(completion)
    if "<|channel|>" in completion:
        return _split_channels(completion)
    if match := _BARE_FINAL.match(completion):
        return SplitCompletion(match["answer"].strip(), match["thinking"].strip())
    if _BARE_ANALYSIS.match(completion):
        return SplitCompletion("", completion[len("analysis") :].strip(), unclosed=True)
    return _split_blocks(completion, *_tags_of(completion))


def _tags_of(completion: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """The tags that open and close thinking in this completion."""
    asked_for = _ASKED_FOR.match(completion)
    if asked_for is None:
        return _START, _END
    name = asked_for[1].lower()
    return re.compile(rf"{_START.pattern}|<{name}\s*>", re.I), re.compile(rf"{_END.pattern}|</{name}\s*>", re.I)


def _split_blocks(completion: str, opening: re.Pattern[str], closing: re.Pattern[str]) -> SplitCompletion:
    """Remove each closed block where it stands. A tag that closes no open block closes one that the prompt opened, and removes
    all that is before it; a tag that opens thinking after the last end means that the thinking never ends."""
    tags = sorted([(one.start(), one.end(), True) for one in opening.finditer(completion)]
                  + [(one.start(), one.end(), False) for one in closing.finditer(completion)])  # fmt: skip
    said, thought, at, is_open = list[str](), list[str](), 0, False
    for start, end, opens in tags:
        piece, at = completion[at:start], end
        if is_open:
            thought.append(piece)
        elif opens:
            said.append(piece)
        else:
            thought += [*said, piece]
            said = []
        is_open = opens
    if not tags:
        return SplitCompletion(completion)
    rest = completion[at:]
    said, thought = [one.strip() for one in said if one.strip()], [one for one in thought if one.strip()]
    if is_open:
        return SplitCompletion("", "".join([*said, *thought, rest]).strip(), unclosed=True)
    return SplitCompletion("\n".join([*said, rest.strip()]).strip(), "".join(thought).strip())


def _split_channels(completion: str) -> SplitCompletion:
    """Split the channels of gpt-oss: `final` holds the answer, the others the thinking."""
    parts = _CHANNEL.split(completion)
    answer, thinking = "", [parts[0]] if not parts[0].startswith("<|start|>") else []
    for channel, content in zip(parts[1::2], parts[2::2], strict=True):
        said = _CHANNEL_END.split(content)[0].strip()
        if channel == "final":
            answer = said
        else:
            thinking.append(said)
    return SplitCompletion(answer, "\n".join(part for part in thinking if part), unclosed="final" not in parts[1::2])


def opening_tag_at_end(prompt: str) -> str:
    """The tag that opens a block of thinking at the end of a prompt, with the white space after it; empty if there is none."""
    starts = list(_START.finditer(prompt))
    if not starts or prompt[starts[-1].end() :].strip():
        return ""
    return prompt[starts[-1].start() :]


def open_tag(text: str, before: str = "") -> str:
    """The tag of the block of thinking that is open at the end of the text; empty if none is.

    before: the tag that is open at its beginning.
    """
    tags = [tag for pattern in (_START, _END, _CHANNEL) for tag in pattern.finditer(text)]
    if not tags:
        return before
    last = max(tags, key=re.Match.start)
    return "" if last.re is _END or (last.re is _CHANNEL and last[1] == "final") else last[0]


def thinking_tags(tokens: Collection[str]) -> frozenset[str]:
    """Those of a model's special tokens without which its thinking would look like an answer.

    They are the tags that open or close thinking and, where a model has all of them, the marks of gpt-oss's channels.
    """
    marks = _CHANNEL_MARKS if _CHANNEL_MARKS.issubset(tokens) else frozenset[str]()
    return marks.union(token for token in tokens if _START.fullmatch(token) or _END.fullmatch(token))


def closing_text(opening_tag: str) -> str:
    """The text that closes a block of thinking, as the models that write this tag close it: `<think>` -> `\\n</think>\\n\\n`."""
    if opening_tag.startswith("<|channel>"):
        return "\n<channel|>"
    if "<|channel|>" in opening_tag:
        return "<|end|><|start|>assistant<|channel|>final<|message|>"
    if opening_tag.startswith(("<|", "[", "◁")):
        end = opening_tag.replace("START", "END").replace("begin", "end").replace("prefix", "suffix")
        return end if end != opening_tag else f"{opening_tag[0]}/{opening_tag[1:]}"
    return f"\n</{opening_tag[1:]}\n\n"


def answer_of(completion: str) -> str:
    """The completion without its thinking: empty where the thinking never ends."""
    return split_thinking(completion).answer
