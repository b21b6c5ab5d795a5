"""The pure parts of making rows with a model: what it is asked, what is read from its answer, and which of that is kept.

Self-Instruct (Wang 2022, arXiv:2212.10560) grows rows from a few seeds; Evol-Instruct (Xu 2023, arXiv:2304.12244) rewrites them; from
documents a question is asked of each passage and answered in the passage's own words.
"""

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from luthier.data.quality.near import near_duplicate_groups
from luthier.data.quality.words import TRIPLE, words
from luthier.records import Conversation

Messages = list[dict[str, str]]

# A prompt that is changed gets a new number: rows say which one made them.
PROMPTS = {
    # kind        version
    "bootstrap": "bootstrap-1",
    "evolve":    "evolve-1",
    "passage":   "passage-1",
}  # fmt: skip
# Of the examples in a prompt, so many were made before (Self-Instruct: 8, of them 2); small models are helped by short prompts.
EXAMPLES, EXAMPLES_MADE = 4, 1
LONGEST_EXAMPLES_CHARACTERS = 6000
LONGEST_PASSAGE_CHARACTERS = 1500
CHANGES = (
    "Add one condition or detail that makes it harder.",
    "Ask for the reasons as well.",
    "Make it about one concrete case instead of the general one.",
    "Move it to a rarer subject of the same field.",
    "Make it need one more step of thinking.",
)
FORM = "Begin the question with Question: and the answer with Answer:"
# One worked passage: without it, small models answer the passage instead of asking about it.
PASSAGE_EXAMPLE = (
    "The violin top is carved from spruce. The back is made of maple, which is harder and reflects the sound.",
    "Question: Why is the back of a violin made of maple?\nAnswer: Maple is harder than spruce and reflects the sound.",
)


@dataclass(frozen=True, slots=True)
class Seed:
    """One question with its answer, the system message it stands under, and its place (file:line, or made:request)."""

    question: str
    answer: str
    system: str
    place: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document: its text and its place (file:first line-last line)."""

    text: str
    place: str


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt: what is sent, what it was made of, and the system message that rows from it get."""

    kind: str
    messages: Messages
    made_of: list[str]
    system: str


@dataclass(frozen=True, slots=True)
class Pair:
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Form:
    """What every seed's answer has in common, and each made answer must have too. `keys` of a JSON object; None: any text."""

    keys: frozenset[str] | None


def seed_of(conversation: Conversation) -> Seed | None:
    """The question and answer of a row with one of each (and a system message, perhaps); None for any other row."""
    turns = list(conversation.turns)
    system = turns.pop(0).content if turns and turns[0].role == "system" else ""
    if len(turns) != 2 or conversation.tools or any(turn.extra for turn in turns):
        return None
    return Seed(turns[0].content.strip(), turns[1].content.strip(), system, str(conversation.source))


def passages_of(text: str, name: str, first_line: int = 1) -> list[Passage]:
    """A document as passages of whole paragraphs, up to LONGEST_PASSAGE_CHARACTERS each; a longer paragraph is cut between sentences.

    `first_line` is the line of the file `name` that the text begins at.
    """
    passages: list[Passage] = []
    held: list[str] = []
    first = last = first_line
    for piece, start, end in _pieces(text, first_line):
        if held and sum(map(len, held)) + len(piece) > LONGEST_PASSAGE_CHARACTERS:
            passages.append(Passage("\n\n".join(held), f"{name}:{first}-{last}"))
            held = []
        if not held:
            first = start
        held.append(piece)
        last = end
    if held:
        passages.append(Passage("\n\n".join(held), f"{name}:{first}-{last}"))
    # A heading or a lone line says too little to ask about.
    return [passage for passage in passages if len(passage.text) >= 80]


def _pieces(text: str, line: int) -> Iterable[tuple[str, int, int]]:
    for paragraph in re.split(r"(\n\s*\n)", text.replace("\r\n", "\n")):
        end = line + paragraph.rstrip("\n").count("\n")
        if whole := paragraph.strip():
            sentences = re.split(r"(?<=[.!?。])\s*", whole) if len(whole) > LONGEST_PASSAGE_CHARACTERS else [whole]
            for piece in _joined(sentences):
                yield piece, line, end
        line += paragraph.count("\n")


def _joined(sentences: Sequence[str]) -> Iterable[str]:
    held = ""
    for sentence in sentences:
        if held and len(held) + len(sentence) > LONGEST_PASSAGE_CHARACTERS:
            yield held
            held = ""
        held = f"{held} {sentence}".strip()
        while len(held) > LONGEST_PASSAGE_CHARACTERS:  # a "sentence" without an end
            yield held[:LONGEST_PASSAGE_CHARACTERS]
            held = held[LONGEST_PASSAGE_CHARACTERS:]
    if held:
        yield held


def form_of(seeds: Sequence[Seed]) -> Form:
    """What the answers of the seeds have in common."""
    keys = [_json_keys(seed.answer) for seed in seeds]
    return Form(keys[0] if keys and keys[0] is not None and len(set(keys)) == 1 else None)


def _json_keys(text: str) -> frozenset[str] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return frozenset(value) if isinstance(value, dict) else None


def bootstrap(seeds: Sequence[Seed], made: Sequence[Seed], draw: random.Random) -> Asked:
    """Ask for one new question with its answer, after examples that are turns of a chat: that is the form small models follow best.

    Each example names a word it has to do with, and so does the request: a word of a row that is there, so that the rows move on.
    """
    first = draw.choice(seeds)
    fellows = [seed for seed in seeds if seed.system == first.system and seed is not first]
    relatives = [seed for seed in made if seed.system == first.system]
    older = draw.sample(relatives, min(EXAMPLES_MADE, len(relatives)))
    examples = [first, *draw.sample(fellows, min(EXAMPLES - 1 - len(older), len(fellows))), *older]
    while len(examples) > 1 and sum(len(one.question) + len(one.answer) for one in examples) > LONGEST_EXAMPLES_CHARACTERS:
        examples.pop()
    draw.shuffle(examples)
    told = f" The answers are those of an assistant that was told: {first.system}" if first.system else ""
    messages = [{"role": "system", "content": f"You write new questions with their answers, in the form of those before.{told}"}]
    for example in examples:
        messages.append({"role": "user", "content": _wish(_word(draw, [example.question]))})
        messages.append({"role": "assistant", "content": f"Question: {example.question}\nAnswer: {example.answer}"})
    source = draw.choice([*seeds, *made])
    messages.append({"role": "user", "content": _wish(_word(draw, [source.question, source.answer]))})
    return Asked("bootstrap", messages, [example.place for example in examples], first.system)


def evolve(seeds: Sequence[Seed], made: Sequence[Seed], draw: random.Random) -> Asked:
    """Ask for a harder or more special version of one question, with its answer."""
    older = draw.choice([*seeds, *made])
    told = f"\nThe answer is that of an assistant that was told: {older.system}" if older.system else ""
    wish = f"Rewrite this question. {draw.choice(CHANGES)} Then answer the new question.\n\nQuestion: {older.question}\nAnswer: {older.answer}\n"
    return Asked("evolve", [{"role": "user", "content": f"{wish}{told}\n{FORM}"}], [older.place], older.system)


def from_passage(passage: Passage, again: bool, draw: random.Random) -> Asked:
    """Ask for one question that the passage answers, and its answer in the passage's words; `again`: about a word drawn from it."""
    word = _word(draw, [passage.text]) if again else ""
    about = f' The question has to do with "{word}".' if word else ""
    wish = "Read this text. Then write one question that the text answers, and the answer in the words of the text. " + FORM
    messages = [
        {"role": "user", "content": f"{wish}\n\n{PASSAGE_EXAMPLE[0]}"},
        {"role": "assistant", "content": PASSAGE_EXAMPLE[1]},
        {"role": "user", "content": f"{wish}{about}\n\n{passage.text}"},
    ]
    return Asked("passage", messages, [passage.place], "")


def _wish(word: str) -> str:
    return f'Write a new question that has to do with "{word}", and its answer.' if word else "Write a new question and its answer."


def _word(draw: random.Random, texts: Sequence[str]) -> str:
    """One of the longer words of the texts; "" where they have none (or no spaces between words)."""
    longest = sorted({word for text in texts for word in re.findall(r"[^\W\d_]{4,24}", text)}, key=lambda word: (-len(word), word))
    return draw.choice(longest[: max(3, len(longest) // 2)]) if longest else ""


# --- what a model answered -------------------------------------------------------------------------------------------------------------

LABEL = re.compile(
    r"^[ \t>#*_\-\d.)(]*"
    r"(?P<name>questions?|q|instruction|task|prompt|problem|answers?|a|response|output|solution|input|context)"
    r"[ \t]*\d*[*_ \t]*:[*_ \t]*",
    re.IGNORECASE | re.MULTILINE,
)
ASKS = {"question", "questions", "q", "instruction", "task", "prompt", "problem"}
ANSWERS = {"answer", "answers", "a", "response", "output", "solution"}
QUESTION_KEYS = ("question", "instruction", "prompt", "task", "problem")
ANSWER_KEYS = ("answer", "output", "response", "completion", "solution")


def pairs_in(text: str) -> list[Pair]:
    """Every question with its answer in a model's text: labeled lines in whatever dress, or JSON."""
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    return _labeled(text) or _in_json(text)


def _labeled(text: str) -> list[Pair]:
    pairs: list[Pair] = []
    question, answer = "", None
    labels = list(LABEL.finditer(text))
    ends = [*(label.start() for label in labels[1:]), len(text)]
    for label, end in zip(labels, ends, strict=False):
        name = label["name"].lower()
        said = text[label.end() : end]
        if name in ASKS:
            pairs += _whole(question, answer)
            question, answer = said, None
        elif answer is not None:
            answer += label[0] + said  # a label inside an answer belongs to it
        elif name in ANSWERS:
            answer = said
        else:
            question = f"{question.strip()}\n\n{said.strip()}".strip()
    return pairs + _whole(question, answer)


def _whole(question: str, answer: str | None) -> list[Pair]:
    if answer is None:
        return []
    # Rules and numbers between one pair and the next are no part of the answer; fences around a whole answer are dress.
    answer = re.sub(r"\s*\n\s*(?:[-*_=]{3,}|\d+[.)]|\#+)\s*$", "", answer.strip())
    fenced = re.fullmatch(r"```\w*\n(.*?)\n?```", answer, flags=re.DOTALL)
    return [Pair(_bare(question), _bare(fenced[1] if fenced else answer))]


def _bare(text: str) -> str:
    text = text.strip()
    for mark in ("**", "__", '"'):
        if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark) and mark not in text[len(mark) : -len(mark)]:
            text = text[len(mark) : -len(mark)].strip()
    return text


def _in_json(text: str) -> list[Pair]:
    pairs: list[Pair] = []
    at = text.find("{")
    while at >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            pairs += _pair_of(value)
        at = text.find("{", end)
    return pairs


def _pair_of(value: dict[str, object]) -> list[Pair]:
    lower = {key.lower(): one for key, one in value.items()}
    question = next((lower[key] for key in QUESTION_KEYS if isinstance(lower.get(key), str)), None)
    answer = next((lower[key] for key in ANSWER_KEYS if key in lower), None)
    if not isinstance(question, str) or answer is None:
        return []
    more = lower.get("input")
    asked = f"{question}\n\n{more}" if isinstance(more, str) and more.strip() else question
    return [Pair(asked.strip(), answer.strip() if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False))]


# --- what is kept ----------------------------------------------------------------------------------------------------------------------

LEAST_QUESTION_CHARACTERS = 8
TEMPLATE_TEXT = re.compile(r"<\|[^|>]{1,40}\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>")
PLACEHOLDER = re.compile(r"\[(?:insert|your|name|topic|answer|question)\b[^\]]*\]|<(?:question|answer|insert[^>]*)>|^\.{3}$", re.IGNORECASE)
REFUSAL = re.compile(
    r"^(?:i['’]?m sorry|sorry,|i apologi[sz]e|i can(?:no|')t |i am unable|as an? (?:ai|language model)|i do(?:n['’]t| not) have (?:access|personal))"
    r"|as an ai (?:language )?model",
    re.IGNORECASE,
)
LOOPED_SHARE = 0.3
GROUNDED_SHARE = 0.6
LEAST_WORDS_TO_JUDGE_LOOPS = 16


def flaw(pair: Pair, form: Form, passage: str, cut: bool) -> tuple[str, str] | None:
    """Why a made row is not kept (a short name, a sentence), or None. `passage` is "" where there is none; `cut`: ended at max_tokens."""
    if len(pair.question) < LEAST_QUESTION_CHARACTERS:
        return "tiny_question", f"the question has {len(pair.question)} characters"
    if not pair.answer:
        return "empty_answer", "there is no text after the answer's label"
    if cut:
        return "cut_answer", "the answer ended at --max-tokens"
    both = f"{pair.question}\n{pair.answer}"
    if found := TEMPLATE_TEXT.search(both) or PLACEHOLDER.search(both):
        return "template_text", f"{found[0]!r} is left in it"
    if found := REFUSAL.search(pair.answer):
        return "refusal", f"the answer says {found[0]!r}"
    if plain(pair.answer) == plain(pair.question):
        return "echo", "the answer repeats the question"
    if (share := looped_share(pair.answer)) > LOOPED_SHARE:
        return "looped", f"{share:.0%} of the answer repeats what it said before"
    if form.keys is not None and (keys := _json_keys(pair.answer)) != form.keys:
        have = "is no JSON object" if keys is None else f"has the keys {', '.join(sorted(keys)) or '(none)'}"
        return "other_form", f"the answer {have}; every seed's has {', '.join(sorted(form.keys))}"
    return _groundless(pair, passage) if passage else None


def _groundless(pair: Pair, passage: str) -> tuple[str, str] | None:
    """An answer from a passage has its numbers, and most of its longer words, from there (or from the question)."""
    known = set(words(f"{passage}\n{pair.question}"))
    said = words(pair.answer)
    if number := next((word for word in said if word[0].isdigit() and word not in known), ""):
        return "not_grounded", f"{number} does not stand in the passage"
    longer = [word for word in said if len(word) > 3]
    strange = [word for word in longer if word not in known]
    if len(strange) > (1 - GROUNDED_SHARE) * len(longer):
        return "not_grounded", f"{len(strange)} of {len(longer)} longer words do not stand in the passage ({', '.join(strange[:3])} ...)"
    return None


def looped_share(text: str) -> float:
    """The share of the text's word quadruples that stood in it before; 0 for short texts."""
    said = words(text)
    if len(said) < LEAST_WORDS_TO_JUDGE_LOOPS:
        return 0.0
    quadruples = [tuple(said[start : start + 4]) for start in range(len(said) - 3)]
    return 1 - len(set(quadruples)) / len(quadruples)


def plain(text: str) -> str:
    """Texts that differ only in case, white space and punctuation are one text here."""
    return " ".join(words(text)) or " ".join(text.casefold().split())


class Known:
    """Every question that is there: finds the one that a new one repeats, to the letter or nearly (`threshold` as in `data check`)."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._places: dict[str, str] = {}
        self._texts: list[tuple[str, str]] = []
        self._with_triple: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)

    def add(self, question: str, place: str) -> None:
        self._places.setdefault(plain(question), place)
        for triple in _triples(question):
            self._with_triple[triple].append(len(self._texts))
        self._texts.append((question, place))

    def twin(self, question: str) -> tuple[str, str] | None:
        """What `question` repeats: ("duplicate" | "near_duplicate", a sentence), or None."""
        if place := self._places.get(plain(question)):
            return "duplicate", f"asks the same as {place}"
        # Only texts that share some triple can be near; the definition of near itself is data check's.
        shared = Counter(number for triple in _triples(question) for number in self._with_triple.get(triple, ()))
        nearest = [number for number, _ in shared.most_common(20)]
        if nearest:
            groups = near_duplicate_groups([question, *(self._texts[number][0] for number in nearest)], self._threshold)
            fellows = next((group for group in groups if 0 in group), [0])
            if len(fellows) > 1:
                return "near_duplicate", f"asks nearly the same as {self._texts[nearest[min(set(fellows) - {0}) - 1]][1]}"
        return None


def _triples(text: str) -> set[tuple[str, ...]]:
    said = words(text)
    return {tuple(said[start : start + TRIPLE]) for start in range(len(said) - TRIPLE + 1)}
