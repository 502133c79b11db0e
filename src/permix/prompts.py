"""Build the chat messages for a persona and a question. No other module formats prompts.

A template that contains `{persona}` is the system message. A template that contains `{question}` too is the user message, and
no system message is sent. Records carry the template's hash, so that only runs with the same template are compared.

With a context (`types.n_context_turns`) the template is one of a system message, and the context says where its text goes.

A persona's text is fitted into the template's sentence: its final full stops are left out if the template goes on behind it, and
a leading "A", "An" or "The" becomes small if the template has words before it. Where the template has only the text in its line,
as "{persona}" has, the text is sent as it is. A whole prompt replaces "You are {persona}." in a template.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from permix.errors import ConfigError
from permix.types import Message, Persona, RecordedTurn, canonical_text, digest

TEMPLATES = {
    "you_are": "You are {persona}.",
    "adopt": "Adopt the identity of {persona}. Answer every message as this person would.",
    "second_person": (
        "This is who you are: {persona}. What you know, how you speak and what you feel are theirs, and you stay in that role."
    ),
    "in_question": "You are {persona}.\n\n{question}",
}

IN_CHARACTER_REQUEST = "Stay in character while you answer."
"""The end of the user's message in the context "in-character"."""


def template_text(template: str, field: str = "personas.template") -> str:
    """The text of a named template, or `template` itself if it contains `{persona}`.

    Raises ConfigError, naming the configuration `field`, if `template` is neither.
    """
    if template in TEMPLATES:
        return TEMPLATES[template]
    if "{persona}" in template:
        return template
    raise ConfigError(f"{field} = {template!r}: give one of {', '.join(TEMPLATES)}, or a text that contains {{persona}}")


def template_hash(template: str) -> str:
    return digest(template_text(template))


def template_id(template: str, field: str = "personas.template") -> str:
    """The id of a template in the records of a run with several: its name, or the hash of the user's own text.

    `field` as in `template_text`.
    """
    text = template_text(template, field)
    return next((name for name, known_text in TEMPLATES.items() if known_text == text), template_hash(template))


def persona_message(persona: Persona, prompt: str, template: str) -> Message:
    """The message that states the persona: a system message, or a user message with the prompt if the template has `{question}`.

    Braces in a persona's text or in a question stay as they are.
    """
    # str.format fails on such braces. Replacing one placeholder after the other is wrong too: a persona's text may contain
    # "{question}", and a question "{persona}".
    text = _YOU_ARE_PERSONA.sub("{persona}", template_text(template)) if persona.whole_prompt else template_text(template)
    parts = [_PERSONA.sub(lambda place: _fit_text(persona.text, place), part) for part in text.split("{question}")]
    return Message(role="user" if len(parts) > 1 else "system", content=prompt.join(parts))


_PERSONA = re.compile(r"\{persona\}")

_YOU_ARE = r"you(?:\s+are|['’]re)\b"

_YOU_ARE_PERSONA = re.compile(rf"{_YOU_ARE}\s+\{{persona\}}\.?", re.IGNORECASE)


def begins_with_you_are(text: str) -> bool:
    """Whether a text begins with "You are" or "You're", so that it is a whole prompt."""
    return re.match(_YOU_ARE, text, re.IGNORECASE) is not None


def _fit_text(text: str, place: re.Match[str]) -> str:
    """The persona's text for one place of a template."""
    before, after = _line_around(place)
    if after.strip() and (before.strip() or not after[0].isspace()):
        text = text.rstrip(".")
    return re.sub(r"^(?:An?|The)(?=\s)", lambda article: article[0].lower(), text) if _is_within_sentence(before) else text


def _line_around(place: re.Match[str]) -> tuple[str, str]:
    return place.string[: place.start()].rpartition("\n")[2], place.string[place.end() :].partition("\n")[0]


def _is_within_sentence(before: str) -> bool:
    return bool(before.strip()) and before.rstrip()[-1] not in ".!?"


_LATIN_LETTER = re.compile(r"[A-Za-z\u00aa-\u024f\u1e00-\u1eff]")

_ENGLISH_WORD = re.compile(
    r"\b(?:a|an|the|who|whose|of|and|with|from|that|for|your|their|his|her|my|is|you|as|like)\b", re.IGNORECASE
)

_OTHER_OPENING = re.compile(
    r"""[#*<\[{`=_>"“«|~-] | \d+[.)]\s | [\w ]{1,30}:\s                           # markup, a quotation, a list, a label
    | (?: i | i['’]m | my | you | your | yours | we | he | she | they | (?-i:[Ii]t) | it['’]s | this\ is
        | there\ is | please | from\ now\ on | as | in\ this | imagine | pretend | assume | adopt | portray | embody | become
        | be | simulate | role-?play | behave | act\ (?:as|like) | play\ (?:a|an|the|as) | take\ on | let['’]?s | let\ us
        | respond | reply | answer | (?:speak|talk|write|stay)\ (?:like|as|in) | always | never | do\ not | don['’]t | ignore
        | welcome
        | du | sie\ sind | ihr\ seid | ich | dein | deine | stell\ dir | spiele | verhalte | handle\ als
        | tu | vous | je | j['’]\w+ | agis | agissez | incarne | joue | imagines | votre
        | t[uú]\ eres | eres | usted | soy | act[uú]a | imagina | quiero | voc[eê] | atue | quero
        | sei | lei\ è | agisci | comportati | immagina | voglio | je\ bent | jij | u\ bent | ni\ är
        | jesteś | jestes | jsi | jste | ti\ si | sen\ bir | siz\ bir | e[sș]ti | sunte[tț]i
        | te\ egy | ön\ egy | olet | sinä | sa\ oled
        | kamu | anda | bạn | wewe | ikaw
      )(?=[\s,:.!]|$)""",
    re.IGNORECASE | re.VERBOSE,
)
"""How texts begin that are sentences of their own, in many languages."""

_FUNCTION_WORD = (
    "(?:an?|the|your|our|my|his|her|their|its|all|every|each|any|some|only|me|us|him|them|you|to|in|on|as|with|like|users?"
    r"|customers?|people|clients?|students?|patients?|visitors?|guests?|everyone|others|short|brief|clear|concise)\b"
)
"""What follows a verb, and not the first noun of a compound such as "support engineer"."""

_INSTRUCTION = re.compile(
    rf"""(?:provide|assist|ensure|explain|describe|remember|maintain|recommend|encourage|engage|generate|impersonate)\s
    | help\s(?!desk|lines?\b|cent)
    | (?: take | give | offer | support | guide | use | keep | make | write | create | teach | tell | show | ask | follow | speak
        | talk | work | sell | greet | treat | try | focus | start | stay | remain | share | serve | represent | perform | avoid
        | introduce | consider | imitate | channel | assume | translate | play )\s+{_FUNCTION_WORD}
    | (?:hello|hi|hey|greetings|dear\ \w+|ok|okay|al(?:l\ )?right|sure|good\ (?:morning|day|evening))\s*[,!.:;]
    | (?:today|tonight|right\ now|now|here|so|suppose|ok|okay|hello|hi|hey)\s+(?:that\s+)?you\b
    | [^.,;:!?\n]{{1,60}},\s+you(?:\s+are|['’]re)\b
    | spiel\s+(?:die|den|das|der|eine?n?|mir)\b | (?:sprich|antworte|hilf|benimm)\b
    | s[eé]\s+una?\b | (?:finge|responde|habla|interpreta|haz)\b | (?:seja|aja|finja|responda)\b
    | (?:sois|soyez|incarnez|imaginez|comportez?|réponds|répondez|parle)\b | (?:sii|fingi|rispondi)\b
    | (?:wees|doe\ alsof|speel|gedraag)\b | (?:bądź|udawaj|wciel)\b""",
    re.IGNORECASE | re.VERBOSE,
)
"""How instructions and greetings begin, which complete no sentence either."""

_VERB = (
    "(?:is|was|are|were|has|had|helps|speaks|knows|says|gives|provides|teaches|sells|owns|believes|thinks|hates|enjoys|writes"
    "|tries|assists|responds|replies|wants|became|isn['’]t|wasn['’]t)"
)

_CLAUSE = re.compile(
    rf"""(?:[A-Z][\w'’.-]*\s+){{1,4}}
      (?: (?:{_VERB}|lives|lived|works|worked|likes|loves)\s
        | (?:answers|needs|offers|plays|supports|studies|runs|acts|uses|talks|makes|takes|serves)\s+{_FUNCTION_WORD} )
    | (?i:an?|the|this|our)\s+
      (?: (?! (?:who|whose|whom|that|which|what|where|when|why|how|of|in|at|on|with|from|for|by|to|as|and|or|but|than|i|you|he|she
              |it|we|they|his|her|their|its|my|your|our|every(?:one|body)|nobody|no|people|\w{{3,}}ing)\b )
        [\w'’.-]+\s+ ){{1,4}} {_VERB}\s""",
    re.VERBOSE,
)
"""How sentences about a third person begin: "Ada helps ...", "The assistant is ...". Not "the man who is ..."."""

_MACRO_LEFT = re.compile(r"\{\{[^{}\n]{1,80}\}\}|<(?:bot|user|char)>", re.IGNORECASE)

_MAX_EXAMPLES = 3


def describe_misfits(personas: Sequence[Persona], templates: Sequence[str]) -> list[str]:
    """What a user should know about the prompts of these personas: one line for each kind, with a count and some examples.

    The kinds: texts that do not complete the template's sentence, such as "Act as a poet" behind "You are"; whole prompts;
    macros such as `{{char}}`; and texts that two personas have.
    """
    lines = [line for template in templates for line in _describe_template_misfits(personas, template)]
    of_all = f"of {len(personas)} personas"
    if macros := {one.id: ", ".join(found) for one in personas if (found := dict.fromkeys(_MACRO_LEFT.findall(one.text)))}:
        lines.append(
            f"warning: {len(macros)} {of_all} have macros that nothing fills in, such as {_examples(macros)}; write what they "
            "stand for"
        )
    first: dict[str, str] = {}
    earlier = {one.id: first.setdefault(canonical_text(one.text), one.id) for one in personas}
    if repeats := {id: f"as {other}" for id, other in earlier.items() if other != id}:
        lines.append(f"warning: {len(repeats)} {of_all} have the text of another one, such as {_examples(repeats)}")
    return lines


def _describe_template_misfits(personas: Sequence[Persona], template: str) -> Iterator[str]:
    prompts = {one.id: f"{persona_message(one, '', template)['content'][:70]!r}" for one in personas}
    unfit = {one.id: prompts[one.id] for one in personas if not _fits(one, template)}
    if unfit:
        yield (
            f"warning: personas.template = {template!r}: {len(unfit)} of {len(personas)} personas do not complete its sentence, "
            f"such as {_examples(unfit)}; to send the texts as they are, give --personas.template '{{persona}}', or put them "
            "into a column system"
        )
    replaces_you_are = _YOU_ARE_PERSONA.search(template_text(template)) is not None
    if whole := {one.id: prompts[one.id] for one in personas if one.whole_prompt and replaces_you_are and one.id not in unfit}:
        yield (
            f"note: {len(whole)} of {len(personas)} personas are whole prompts and are sent as they are, without the "
            f'template\'s own "You are", such as {_examples(whole)}'
        )


def _examples(shown: Mapping[str, str]) -> str:
    return ", ".join(f"{id} ({text})" for id, text in list(shown.items())[:_MAX_EXAMPLES])


def _fits(persona: Persona, template: str) -> bool:
    """Whether the text can complete the template's sentence, as far as that shows in its script and its first words."""
    sentences = template_text(template)
    if persona.whole_prompt:
        sentences = _YOU_ARE_PERSONA.sub("{persona}", sentences)
    before = next((line for place in _PERSONA.finditer(sentences) if _is_within_sentence(line := _line_around(place)[0])), None)
    if before is None:
        return True
    text = persona.text
    is_sentence = any(opening.match(text) for opening in (_OTHER_OPENING, _INSTRUCTION, _CLAUSE))
    if persona.whole_prompt or is_sentence or text.startswith(before.strip()):
        return False
    if not _is_latin(sentences.replace("{persona}", "").replace("{question}", "")):
        return True
    is_other_language = _ENGLISH_WORD.search(before) and len(text.split()) >= 4 and not _ENGLISH_WORD.search(text)
    return _is_latin(text) and not is_other_language


def _is_latin(text: str) -> bool:
    """Whether most letters are Latin."""
    letters = [char for char in text if char.isalpha()]
    return text.isascii() or 2 * len(_LATIN_LETTER.findall(text)) >= len(letters)


def persona_prompt(messages: Sequence[Message]) -> str:
    """The text that states the persona: the system message or, if that is missing or empty, the user message."""
    return next((one["content"] for one in messages if one["content"]), "")


def pairwise_choice_prompt(question: str, first: str, second: str) -> str:
    """A prompt that repeats the question, shows two answers and asks for the letter of the right one."""
    return (
        f"{question}\n\nTwo answers were given to this question.\n\nAnswer A:\n{first.strip()}\n\nAnswer B:\n{second.strip()}\n\n"
        "Which of the two is right? Reply with A or B and nothing else."
    )


def require_system_template(template: str, field: str) -> None:
    """Raise ConfigError, naming `field` (of contexts), if the template puts the persona into the user's message by itself."""
    if "{question}" in template_text(template):
        raise ConfigError(
            f"{field}: the template {template!r} puts the persona into the user's message, and the contexts say where it goes; "
            'give a template without {question}, and the context "user" for a persona in the user\'s message'
        )


def build_messages(
    persona: Persona | None,
    prompt: str,
    *,
    template: str = "you_are",
    empty_system_prompt: bool = False,
    context: str = "",
    turns: Sequence[RecordedTurn] = (),
) -> tuple[Message, ...]:
    """The chat messages of one cell: the persona's message, if there is a persona, and the user message with `prompt`.

    Without persona no system message is sent. The model's chat template may then insert its default system message, as it does
    for ordinary users. `empty_system_prompt` sends an empty system message instead, which prevents the default.

    `context` changes the messages of a persona: "user" puts the template's text in front of the prompt, with an empty line
    between them, and sends no system message for the persona; "in-character" ends the user's message with
    `IN_CHARACTER_REQUEST`; with "turns-K" the K recorded `turns` go between the persona's message and the user's. "system" is
    the same as no context.
    """
    if persona is not None and context == "in-character":
        prompt = f"{prompt}\n\n{IN_CHARACTER_REQUEST}"
    user = Message(role="user", content=prompt)
    if persona is not None:
        in_context = f"{template_text(template)}\n\n{{question}}" if context == "user" else template
        message = persona_message(persona, prompt, in_context)
        if message["role"] == "system":
            return (message, *(one for turn in turns for one in _turn_messages(turn)), user)
        user = message
    return (Message(role="system", content=""), user) if empty_system_prompt else (user,)


def _turn_messages(turn: RecordedTurn) -> tuple[Message, Message]:
    return Message(role="user", content=turn.question), Message(role="assistant", content=turn.answer)
