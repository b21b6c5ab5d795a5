"""Which languages the answers are in, and the rows that stray."""

import importlib.util
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from luthier.data.quality.check import Finding, Given, Look, Note, Noted
from luthier.data.quality.limits import counted, not_run
from luthier.data.quality.parts import answers_of, excerpt, prompt_of, turns_of, without_code
from luthier.records import Conversation

SURE = 0.85  # the identifier's own probability
ENOUGH_LETTERS = 40  # below, short words of one language are words of another
ENOUGH_SIGNS = 12  # where a letter is a syllable or a word
READ = 240  # characters: enough to know, and the time is by the character
COMMON = 0.05  # a language of more than this share of the rows is meant to be there
# Close relatives of a large language, which would take a part of its probability.
DIALECTS = {
    "ace", "an", "ary", "arz", "bcl", "crh", "eo", "ext", "fuv", "gcf", "gcr",
    "gom", "grc", "gug", "guw", "hbo", "ku", "la", "lij", "ltg", "nn", "pcm", "sdh", "uzs", "vec", "wa", "wuu", "yue",
}  # fmt: skip
# Languages that even a reader takes for one another in a few lines.
ALIKE = [
    {"da", "no", "sv"}, {"hr", "sr", "bs", "sl"}, {"id", "ms", "jv"}, {"pt", "gl"}, {"es", "ca", "gl", "oc"}, {"cs", "sk"},
    {"ru", "uk", "be", "bg", "mk"}, {"af", "nl", "fy"}, {"fr", "oc"}, {"de", "lb"}, {"tr", "az"}, {"fi", "et"}, {"hi", "mr", "ne", "sa"},
]  # fmt: skip
NAMED = (
    "arabic|chinese|mandarin|czech|danish|dutch|english|finnish|french|german|greek|hebrew|hindi|hungarian|indonesian|italian|japanese|korean|latin|"
    "norwegian|polish|portuguese|romanian|russian|spanish|swedish|thai|turkish|ukrainian|vietnamese"
)
ASKED = re.compile(
    rf"translat|\bin(?:to)? (?:{NAMED})\b|übersetz|auf (?:deutsch|englisch|französisch)|tradu[iczs]|перевед|翻译|翻訳|번역", re.IGNORECASE
)
WORDS = re.compile(r"[^\W\d_]{2,}")


def start_language(given: Given) -> Look | str:
    if importlib.util.find_spec("py3langid") is None:
        return 'needs py3langid: pip install "luthier[data]"'

    def look(row: Conversation) -> Note | None:
        text = _prose_of(row)
        if not text:
            return None
        language, sure = _identifier().classify(text)
        if language == "zxx" or sure < SURE:
            return None
        kind = "asked" if ASKED.search(prompt_of(row)) else language
        return Note("", float(sure), kind)  # every row has one: the text is put in for the strays alone

    return look


@cache
def _identifier() -> Any:
    """The identifier, loaded at the first row: 0.6 s and 140 MB, which a process that looks at no row is spared."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages([language for language in identifier.labels if language not in DIALECTS])
    identifier.nb_ptc = np.ascontiguousarray(identifier.nb_ptc, dtype=np.float32)  # kept as float16 by columns, which is slow to read
    return identifier


def _prose_of(row: Conversation) -> str:
    """The answers' words; "" where there are too few to tell."""
    said = [turn.content for turn in answers_of(row)] or [turn.content for turn in turns_of(row) if turn.role == "text"]
    text = without_code("\n".join(said)[: 2 * READ])[:READ].strip()
    if not text or text[0] in "{[":
        return ""
    words = " ".join(WORDS.findall(text))
    if words.isascii():
        return words if len(words) >= ENOUGH_LETTERS and len(words) > len(text) // 2 else ""
    signs = sum(character > "\u2e80" for character in words)
    return words if len(words) >= ENOUGH_LETTERS or signs >= ENOUGH_SIGNS else ""


def conclude_language(noted: Noted, given: Given) -> Finding:
    counts = Counter(note.kind for _, note in noted.notes if note.kind != "asked")
    if not counts:
        return not_run(noted.check, "there is too little prose to tell")
    total = counts.total()
    wanted = set(given.settings.languages) or {language for language, times in counts.items() if times > COMMON * total}
    is_wanted = _alike(wanted or {counts.most_common(1)[0][0]})
    strays = [
        (place, note._replace(detail=f"{note.kind}: {excerpt(_prose_of(noted.rows[place]))}"))
        for place, note in noted.notes
        if note.kind != "asked" and not is_wanted(note.kind)
    ]
    mix = ", ".join(f"{language} {100 * times / total:.0f} %" for language, times in counts.most_common(4))
    return counted(
        Noted(noted.check, noted.rows, strays),
        f"are in a language that is not meant ({mix})",
        "take them out (luthier data clean FILE), or name the languages that are meant: checks.languages: [en, de]",
        of=len(noted.rows),
        numbers={"languages": dict(counts.most_common())},
    )


def _alike(wanted: set[str]) -> Callable[[str], bool]:
    allowed = wanted.union(*(group for group in ALIKE if group & wanted))
    return allowed.__contains__
