r"""Separate a model's thinking from its answer.

`split_thinking` knows the blocks that public models write: `<think>...</think>` and its relatives, `[THINK]...[/THINK]`, and the
channels of gpt-oss with or without their special tokens. A chat template may have opened the block in the prompt, so an end
without a start counts too. A block that never ends leaves no answer.
"""

import re
from typing import NamedTuple

_NAME = r"(?:seed:)?(?:think(?:ing)?|thoughts?|reasoning|reflection)"

_START = re.compile(rf"<\|?(?:START_THINKING|begin_of_thought)\|>|<{_NAME}>|\[THINK\]|◁think▷", re.IGNORECASE)

_END = re.compile(rf"<\|?(?:END_THINKING|end_of_thought)\|>|</{_NAME}>|\[/THINK\]|◁/think▷", re.IGNORECASE)

_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>")

_CHANNEL_END = re.compile(r"<\|(?:end|return|call|start)\|>(?:assistant)?")

# gpt-oss where special tokens were skipped in decoding: the names of the roles and channels run together.
_BARE_FINAL = re.compile(r"\A(?:analysis|commentary)(?P<thinking>.*)assistantfinal(?P<answer>.*)\Z", re.DOTALL)

_BARE_ANALYSIS = re.compile(r"\Aanalysis(?=[A-Z\"'])")


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
    ends = list(_END.finditer(completion))
    after = ends[-1].end() if ends else 0
    start = _START.search(completion, after)
    if not ends and start is None:
        return SplitCompletion(completion)
    if start is not None:
        return SplitCompletion("", _without_marks(completion[: start.start()] + completion[start.end() :]), unclosed=True)
    return SplitCompletion(completion[after:].strip(), _without_marks(completion[: ends[-1].start()]))


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


def _without_marks(text: str) -> str:
    return _END.sub("", _START.sub("", text)).strip()


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


def is_thinking_tag(text: str) -> bool:
    """Whether the text is a tag that opens or closes thinking, and nothing else."""
    return bool(_START.fullmatch(text) or _END.fullmatch(text))


def closing_text(opening_tag: str) -> str:
    """The text that closes a block of thinking, as the models that write this tag close it: `<think>` -> `\\n</think>\\n\\n`."""
    if "channel" in opening_tag:
        return "<|end|><|start|>assistant<|channel|>final<|message|>"
    if opening_tag.startswith(("<|", "[", "◁")):
        end = opening_tag.replace("START", "END").replace("begin", "end")
        return end if end != opening_tag else f"{opening_tag[0]}/{opening_tag[1:]}"
    return f"\n</{opening_tag[1:]}\n\n"


def answer_of(completion: str) -> str:
    """The completion without its thinking: empty where the thinking never ends."""
    return split_thinking(completion).answer
