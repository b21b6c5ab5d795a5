"""Answers that teach the wrong thing: empty ones, cut ones, loops and refusals."""

import re
from collections import Counter
from itertools import pairwise

from luthier.data.quality.check import Finding, Given, Look, Note, Noted
from luthier.data.quality.limits import counted
from luthier.data.quality.parts import answers_of, excerpt, prompt_of, sample_of, turns_of, without_code
from luthier.records import Conversation

# --- empty_or_tiny_answer

NOTHING = re.compile(
    r"n\.?/?a\.?|null|nil|nan|none|tbd|tba|todo|undefined|unknown|no (?:answer|output|response|data|content|text)|"
    r"not (?:available|applicable|provided)|lorem ipsum.*|as above|see above|placeholder|test(?:ing)?|asdf\w*|qwerty|foo|bar|xxx+|"
    r"blank|empty|<?noinput>?|<empty>|\[(?:empty|blank|answer)\]|keine antwort|sans objet|sin respuesta|нет ответа|无",
    re.IGNORECASE | re.DOTALL,
)
# What a row of labels may well be called.
MAYBE_LABELS = {"none", "unknown", "nil", "test", "testing", "empty", "blank", "bar", "foo", "placeholder", "无"}
SHORT_ANSWERS = {"yes", "no", "true", "ja", "oui", "non", "si", "sí", "da", "nu", "tak", "nie", "sim", "não", "ok", "e"}
SIGNS_OF_NOTHING = frozenset("-–—_.…?!,;:*#'\"|/ \t\n")
SHORT_STYLE = 24  # characters: where the median answer is below, answers are labels or single facts, and being short is no fault


def start_empty(given: Given) -> Look | str:
    def look(row: Conversation) -> Note | None:
        for turn in answers_of(row):
            text = turn.content.strip()
            if len(text) > 40 or '"tool_calls"' in turn.extra:
                continue
            if note := _nothing_in(text, row):
                return note
        return None

    return look


def _nothing_in(text: str, row: Conversation) -> Note | None:
    bare = text.strip(" \t\n.!?:;,'\"*_-()").lower()
    shown = f"the answer is {text!r}"
    if not text:
        return Note("the answer is empty", 3.0, "nothing")
    if not any(character.isalnum() for character in text):
        # An emoji, a sign or an operator can be what was asked for.
        return Note(shown, 2.0, "nothing") if SIGNS_OF_NOTHING.issuperset(text) else None
    if NOTHING.fullmatch(bare):
        return Note(shown, 2.0, "tiny" if bare in MAYBE_LABELS else "nothing")
    if len(bare) > 3 or bare in SHORT_ANSWERS or not bare.isalpha() or not bare.isascii() or _is_option(bare, row):
        return None
    return Note(shown, 1.0, "tiny")


def _is_option(answer: str, row: Conversation) -> bool:
    """Whether a short answer is one of the things that the prompt offers: a word of it, or A) ... B) ..."""
    letter, prompt = re.escape(answer), prompt_of(row).lower()
    if len(answer) > 1:
        return re.search(rf"(?<!\w){letter}(?!\w)", prompt) is not None
    return re.search(rf"(?<!\w)(?:{letter}[).:,?/\]]|(?:or|to|and) {letter}(?!\w)|{letter} (?:or|to)(?!\w))", prompt) is not None


def conclude_empty(noted: Noted, given: Given) -> Finding:
    lengths = sorted(len(turn.content) for row in sample_of(noted.rows) for turn in answers_of(row)) or [0]
    labels = lengths[len(lengths) // 2] <= SHORT_STYLE
    return counted(
        noted.of_kind("nothing") if labels else noted,
        "have an answer that says nothing",
        "take them out: luthier data clean FILE (or write the answers)",
        numbers={"median_answer_characters": lengths[len(lengths) // 2], "answers_are_labels": labels},
    )


# --- cut_answer

ENDS = tuple(".!?…。!?」』】.।॥؟۔።।។။⁉‼~")
CLOSERS = "\"'”’»)]}*_`›>）】」』\u200d\ufe0f"
QUOTES = "\"'”’»)*_"
# Words that no sentence ends with, in any style; "for" and "it" can.
MID_WORDS = re.compile(
    r"(?:^|\s)(?:the|a|an|and|or|but|of|from|into|which|whose|because|if|while|than|will|would|could|should|must|its|their|your|our|my|"
    r"und|oder|der|die|das|dem|den|des|ein|eine|einen|für|dass|weil|et|ou|le|la|les|une|du|de|dans|pour|que|qui|y|o|el|los|las|una|del|para|"
    r"и|или|в|на|с|по|для|что|как|к|от)$",
    re.IGNORECASE,
)
CUT_SIGNS = tuple(",;–—-(/=&+[{、，；")
CODE_TAIL = re.compile(r"[;{}()\[\]=<>|\\$%@#^~/]|^\s{4,}|^\w+[.:]\w+|\w\(\)", re.MULTILINE)
LIST_ITEM = re.compile(r"\s*(?:[-*•+–]|\(?\d{1,3}[.):]|\(?[a-zA-Z][.)])\s+\S|\s*\|.*\|\s*$|\s*#{1,6}\s|[^\n]{1,40}:\s+\S[^\n]{0,80}$")
ADDRESS = re.compile(r"(?:https?://|www\.|[\w.+-]+@)\S+$|[\w./\\-]+\.\w{1,5}$|/[\w./-]+$")
QUERY = re.compile(r"(?:SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER|WITH)\s")
FORMULA = re.compile(r"\S = \S[^.!?]*$")
NEXT_SENTENCE = re.compile(r"[.!?]\s+[A-ZÀ-ÞА-Я]")
ENOUGH_WORDS = 6  # below, an answer may be a label, a name or a title
ENOUGH_CHARACTERS = 25  # for scripts without spaces
USUAL = 0.8  # an end without punctuation counts only where this share of the long answers that end in a word or a sentence end with it


def start_cut(given: Given) -> Look | str:
    def look(row: Conversation) -> Note | None:
        for turn in answers_of(row):
            if kind := _how_it_ends(turn.content):
                end = excerpt(turn.content.rstrip(), len(turn.content.rstrip()))
                return Note(f"the answer ends with: {end}", 2.0 if kind == "cut" else 1.0, kind)
        return None

    return look


def _how_it_ends(answer: str) -> str:
    """ "cut": surely; "open": without punctuation, which may be how the set is written; "" where it is complete or cannot be told."""
    text = answer.rstrip()
    if text.count("```") % 2:
        return "cut"
    bare = text.rstrip(CLOSERS)
    if not bare or bare.endswith(ENDS) or text.endswith("```"):
        return ""
    last = bare.rpartition("\n")[2]
    if _is_not_prose(text, last):
        return ""
    words = last.split()
    if len(words) < ENOUGH_WORDS and not (_has_no_spaces(last) and len(last) >= ENOUGH_CHARACTERS):
        # A short last line: a name, a signature, a list item. After a sentence that goes on it is told by its own last word.
        return "cut" if len(text.split()) >= ENOUGH_WORDS and len(words) > 2 and MID_WORDS.search(last) else ""
    if text == bare and (bare.endswith(CUT_SIGNS) or MID_WORDS.search(bare[-16:])):
        return "cut"
    # A number, a zip code or a date ends many a sound answer, and cuts fall there rarely.
    if not text[-1].isalpha() or ADDRESS.search(last):
        return ""
    return "" if LIST_ITEM.match(last) and not NEXT_SENTENCE.search(last, 5) else "open"


def _ends_a_sentence(answer: str) -> bool:
    """Whether it surely ends as prose does: `{{file ...}}` does not."""
    return answer.rstrip().rstrip(QUOTES).endswith(ENDS)


def _is_not_prose(text: str, last: str) -> bool:
    """JSON, code, a table, a formula: their ends are told by the checks of JSON and code."""
    if text[0] in "{[" and text[-1] in "}]":
        return True
    if text.endswith((":", "$")) or QUERY.match(text) or FORMULA.search(last) or not any(character.isalpha() for character in last):
        return True
    signs = len(CODE_TAIL.findall(last))
    return signs >= 3 or (text[-1] in ";{}()=/" and signs >= 2)


def _has_no_spaces(line: str) -> bool:
    """Whether the script has no spaces between words (CJK, Thai ...)."""
    return sum("\u0e00" <= character <= "\u0eff" or "\u2e80" <= character <= "\u9fff" or "\uac00" > character >= "\uf900" for character in line) > (
        len(line) // 2
    )


def conclude_cut(noted: Noted, given: Given) -> Finding:
    long = [turn.content for row in sample_of(noted.rows) for turn in answers_of(row) if len(turn.content.split()) >= ENOUGH_WORDS]
    # Commands, tables and formulas end otherwise and say nothing of how sentences end here.
    ended = sum(_ends_a_sentence(answer) for answer in long)
    told = ended + sum(_how_it_ends(answer) == "open" for answer in long)
    usual = told > 0 and ended / told >= USUAL
    return counted(
        noted if usual else noted.of_kind("cut"),
        "have an answer that ends in mid-sentence",
        "raise the length limit of the tool that made them and make them again, or take them out: luthier data clean FILE",
        numbers={"long_answers_that_end": ended, "long_answers_looked_at": told, "an_end_needs_punctuation": usual},
    )


# --- repetition

ENOUGH_TO_REPEAT = 12  # words; a refrain of a short answer is no loop
CHARACTER_RUN = re.compile(r"([^\W\d_]|[!?])\1{11,}")
SAME_WORD_RUN = 5  # "no no no no" is speech, five in a row are not
PHRASE = 4  # words
REPEATED_SHARE = 0.5  # of all phrases of four words, those that stood there before (Rae 2021, arXiv:2112.11446, table A1, has 0.16 for the top one)
SAME_LINES = 4


def start_repetition(given: Given) -> Look | str:
    def look(row: Conversation) -> Note | None:
        for turn in turns_of(row):
            if turn.role in ("assistant", "completion", "text") and (note := _loop_in(turn.content)):
                return note
        return None

    return look


def _loop_in(answer: str) -> Note | None:
    if run := CHARACTER_RUN.search(answer):
        return Note(f"one letter {len(run[0])} times: {excerpt(answer, run.start())}", 2.0)
    text = without_code(answer)
    words = text.split()
    if len(words) < ENOUGH_TO_REPEAT:
        return _loop_without_spaces(text) if len(text) > 60 else None
    if len(set(words)) > 0.6 * len(words) and len(words) < 200:
        return _loop_without_spaces(text) if len(text) > 20 * len(words) else None
    return _same_word_run(words) or _same_lines(text) or _repeated_phrases(words)


def _same_word_run(words: list[str]) -> Note | None:
    run = 1
    for before, word in pairwise(words):
        run = run + 1 if word == before and word[0].isalpha() else 1
        if run >= SAME_WORD_RUN:
            return Note(f"{word!r} {run} times in a row", 1.5)
    return None


def _same_lines(text: str) -> Note | None:
    lines = Counter(line.strip() for line in text.splitlines() if len(line.split()) >= 3 and "|" not in line)
    line, times = max(lines.items(), key=lambda item: item[1], default=("", 0))
    return Note(f"the same line {times} times: {excerpt(line)}", 1.0 + times / 100) if times >= SAME_LINES else None


def _repeated_phrases(words: list[str]) -> Note | None:
    if len(words) < 2 * ENOUGH_TO_REPEAT:
        return None
    phrases = Counter(zip(*(words[start:] for start in range(PHRASE)), strict=False))
    total = len(words) - PHRASE + 1
    share = 1 - len(phrases) / total
    if share < REPEATED_SHARE:
        return None
    phrase, times = phrases.most_common(1)[0]
    return Note(f"{share:.0%} of its phrases repeat; {' '.join(phrase)!r} stands {times} times", 1 + share)


def _loop_without_spaces(text: str) -> Note | None:
    """Text of a script without spaces: six characters are a phrase."""
    if not _has_no_spaces(text):
        return None
    pieces = [text[start : start + 6] for start in range(len(text) - 5)]
    share = 1 - len(set(pieces)) / len(pieces)
    return Note(f"{share:.0%} of it repeats: {excerpt(text)}", 1 + share) if share >= REPEATED_SHARE else None


def conclude_repetition(noted: Noted, given: Given) -> Finding:
    return counted(noted, "have an answer that goes round in a loop", "take them out: luthier data clean FILE")
