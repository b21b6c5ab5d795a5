"""What does not belong into text: control tokens, broken encodings, invisible characters, left-overs of web pages."""

import re

from luthier.data.quality.check import Finding, Given, Look, Note, Noted
from luthier.data.quality.limits import counted
from luthier.data.quality.parts import FENCED, excerpt, prompt_of, turns_of, without_code
from luthier.records import Conversation

# --- special_tokens: those of the known families, whether or not this run's tokenizer has them

FAMILIES = re.compile(
    r"<\|/?[a-zA-Z][a-zA-Z0-9_]{1,40}\|>|<[|｜][A-Za-z▁_ ]{2,40}[|｜]>|"  # ChatML, Llama 3, Phi, gpt-oss; DeepSeek
    r"</?(?:start_of_turn|end_of_turn|start_of_image|bos|eos|pad|unk|tool_call|tool_response|function_calls)>|"  # Gemma and others
    r"\[/?INST\]|<</?SYS>>|\[/?(?:TOOL_CALLS|TOOL_RESULTS|AVAILABLE_TOOLS|SYSTEM_PROMPT|PREFIX|SUFFIX|MIDDLE)\]|"  # Llama 2, Mistral
    r"(?:^|(?<=[\s.!?]))</?s>(?=\s|$)|(?<=\w[.!?])</s>|"
    r"^#{2,3} ?(?:Response|Instruction|Input|Assistant|Human|User|System|Output): *$|^#{2,3} ?(?:Response|Instruction|Input|Assistant|Human|User): ",
    re.MULTILINE,
)
HINT = re.compile(r"<[|｜/sbeputf]|\[/?[A-Z]{3}|<<|##|\{[{%]")
HOLE = re.compile(
    r"(?<![\\{}\w$^_])\{\{-?\s*[A-Za-z_][\w.|\[\]'\" -]{0,60}?-?\}\}|\{%-?\s*(?:if|for|endif|endfor|else|set|block|include)\b[^%\n]{0,80}%\}"
)
ABOUT_HOLES = re.compile(
    r"jinja|template|handlebars|mustache|placeholder|\bvue\b|angular|\bhelm\b|ansible|liquid|latex|django|f-string|dbt\b|twig", re.IGNORECASE
)
A_TEMPLATE_HAS = 50  # different {{ names }} at most
STRIKE = re.compile(r"<s>[^<\n]*</s>")  # HTML's old strike-through


def start_special(given: Given) -> Look | str:
    # A token that is a word is an ordinary word: only those that look like markup are looked for.
    own = [re.escape(token) for token in given.special_tokens if not token.isalnum() and len(token) > 2 and token not in ("<s>", "</s>")]
    tokens = re.compile("|".join(own)) if own else None

    def look(row: Conversation) -> Note | None:
        if not row.templated:
            return None  # such text is used as it stands: its marks are the user's own template
        for turn in turns_of(row):
            found = tokens.search(turn.content) if tokens else None
            if not found and HINT.search(turn.content):
                found = _of_a_family(turn.content) or _hole(turn.content, row)
            if found:
                shown = f"{turn.role} holds {found[0].strip()!r}: {excerpt(turn.content, found.start(), found.end())}"
                return Note(shown, 1.0 + (turn.role == "assistant"), found[0] if found[0].startswith("{") else "")
        return None

    return look


def _of_a_family(text: str) -> re.Match[str] | None:
    return FAMILIES.search(STRIKE.sub("", text) if "<s>" in text else text)


def _hole(text: str, row: Conversation) -> re.Match[str] | None:
    """A {{ variable }} that nobody filled in, in a row that is not about templates and not in code."""
    if "{{" not in text and "{%" not in text:
        return None
    found = HOLE.search(without_code(text))
    return None if found and ABOUT_HOLES.search("\n".join(turn.content for turn in row.turns)) else found


def conclude_special(noted: Noted, given: Given) -> Finding:
    # A template has a few variables. Hundreds of names are a notation that the rows are about, such as {{file}} in pages on commands.
    holes = {note.kind for _, note in noted.notes if note.kind}
    is_notation = len(holes) > A_TEMPLATE_HAS
    taken = f" ({len(holes):,} different {{{{names}}}} are taken for the rows' own notation)" if is_notation else ""
    return counted(
        noted.of_kind("") if is_notation else noted,
        f"hold control tokens or template text{taken}",
        "the file was written with a template in it: export it again without, or take the rows out: luthier data clean FILE",
        numbers={"different_holes": len(holes)},
    )


# --- mojibake


def start_mojibake(given: Given) -> Look | str:
    try:
        from ftfy.badness import badness
    except ImportError:
        return 'needs ftfy: pip install "luthier[data]"'

    def look(row: Conversation) -> Note | None:
        for turn in turns_of(row):
            if turn.content.isascii():
                continue
            if (bad := badness(turn.content)) and (note := _mended(turn.content, bad)):
                return note
        return None

    return look


def _mended(text: str, bad: int) -> Note | None:
    """Bad sequences count only where decoding the text again makes them better: what cannot be mended is rare writing."""
    from ftfy import fix_encoding
    from ftfy.badness import badness

    mended = fix_encoding(text)
    if mended == text or badness(mended) >= bad:
        return None
    place = next((place for place, (one, other) in enumerate(zip(text, mended, strict=False)) if one != other), 0)
    return Note(f"{excerpt(text, place)!r} was probably {excerpt(mended, place)!r}", float(bad))


def conclude_mojibake(noted: Noted, given: Given) -> Finding:
    return counted(
        noted,
        "have text in a wrong encoding (Ã© for é)",
        "write the file again as UTF-8, or set data.encoding to what it is; luthier data clean FILE takes the rows out",
    )


# --- control_characters

ASCII_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
OTHER_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffd\ufffe\uffff\U000e0001-\U000e007f]"
)
RIGHT_TO_LEFT = re.compile(r"[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
MARKS_OF_BOTH_WAYS = re.compile(r"[\u200e\u200f\u202a-\u202c\u2066-\u2069]")
NAMES = {
    "\u200b": "a zero-width space", "\ufeff": "a byte order mark", "\ufffd": "U+FFFD, which stands where a character was lost",
    "\u202e": "a right-to-left override", "\u202d": "a left-to-right override", "\u00ad": "a soft hyphen", "\x1b": "a terminal escape",
    "\x00": "a NUL",
}  # fmt: skip


def start_control(given: Given) -> Look | str:
    def look(row: Conversation) -> Note | None:
        for turn in turns_of(row):
            text = turn.content
            if text.isascii():
                found = ASCII_CONTROL.search(text)
            else:
                found = next((found for found in OTHER_CONTROL.finditer(text) if not _belongs(found[0], found.start(), text)), None)
            if found:
                name = NAMES.get(found[0], f"U+{ord(found[0]):04X}")
                return Note(f"{turn.role} holds {name}: {excerpt(text, found.start())}", 2.0 if found[0] in "\ufffd\u202e\x00" else 1.0)
        return None

    return look


def _belongs(character: str, place: int, text: str) -> bool:
    """Whether an invisible character has work to do where it stands: joiners in emoji and Indic scripts, marks in right-to-left text."""
    around = text[max(0, place - 1) : place] + text[place + 1 : place + 2]
    if character in "\u200c\u200d":
        return any(ord(neighbor) > 0x2FF for neighbor in around)
    if character == "\u200b":
        return any("\u0e00" <= neighbor <= "\u0eff" or "\u1000" <= neighbor <= "\u109f" or "\u1780" <= neighbor <= "\u17ff" for neighbor in around)
    if MARKS_OF_BOTH_WAYS.match(character):
        return RIGHT_TO_LEFT.search(text) is not None
    # Flags of England, Scotland and Wales are a black flag and letters that cannot be seen.
    return "\U000e0020" <= character <= "\U000e007f" and "\U0001f3f4" in text[max(0, place - 8) : place]


def conclude_control(noted: Noted, given: Given) -> Finding:
    return counted(noted, "hold control or invisible characters", "strip them where the file is made, or take the rows out: luthier data clean FILE")


# --- html

ATTRIBUTES = r"(?:\s+[\w:-]+\s*=\s*(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s<>\"']+))*\s*/?"
TAG = re.compile(
    rf"</?(?:p|br|hr|div|span|a|b|i|u|em|strong|small|sup|sub|ul|ol|li|dl|dt|dd|table|thead|tbody|tr|td|th|h[1-6]|img|font|center|script|style|html|body|"
    rf"head|meta|link|iframe|input|button|form|label|section|article|header|footer|nav|blockquote|cite|figure|noscript|svg){ATTRIBUTES}>|<!--.{{0,200}}?-->",
    re.IGNORECASE | re.DOTALL,
)
ENTITY = re.compile(
    r"&(?:amp|lt|gt|quot|apos|nbsp|ndash|mdash|hellip|[lr][sd]quo|laquo|raquo|bull|copy|reg|trade|euro|pound|deg|middot|times|"
    r"[aeiouAEIOU](?:acute|grave|circ|uml)|szlig|ccedil|ntilde|#\d{2,6}|#x[0-9a-fA-F]{2,5});"
)
ABOUT_PAGES = re.compile(
    r"html|xml|\bmarkup\b|\btags?\b|web ?(?:page|site|scrap)|\bcss\b|\bjsx?\b|javascript|react|\bsvg\b|\bdom\b|bootstrap|beautifulsoup|"
    r"entit(?:y|ies)|escap(?:e|ing)|"
    r"</?[a-z]+|\bphp\b|\brss\b|anchor|hyperlink|xpath|selenium|<!doctype|\bwordpress\b|email template|landing page|\bcode\b|\bbutton\b|\bregex",
    re.IGNORECASE,
)
PROGRAM = re.compile(r"^\s*(?:<!DOCTYPE|<html|<\?xml|<\?php|import |from \w+ import|def |class |function |const |#include)", re.IGNORECASE)


def start_html(given: Given) -> Look | str:
    def look(row: Conversation) -> Note | None:
        for turn in turns_of(row):
            if turn.role in ("system", "tool") or ("<" not in turn.content and "&" not in turn.content):
                continue
            text = without_code(turn.content)
            found = TAG.search(text) or ENTITY.search(text)
            if found and not _is_about_pages(row, turn.content):
                return Note(f"{turn.role} holds {excerpt(found[0])}: {excerpt(text, found.start(), found.end())}", 1.0 + len(TAG.findall(text)) / 10)
        return None

    return look


def _is_about_pages(row: Conversation, text: str) -> bool:
    """Whether the row is about markup, so that its tags are content. The prompt says so; tags in the prompt itself do not."""
    asked = FENCED.sub(" ", TAG.sub(" ", "\n".join((*[turn.content for turn in row.turns if turn.role == "system"], prompt_of(row)))))
    return bool(PROGRAM.match(text) or ABOUT_PAGES.search(asked))


def conclude_html(noted: Noted, given: Given) -> Finding:
    return counted(
        noted,
        "hold left-over HTML",
        "turn it into text where the file is made (html.unescape, and a parser for tags), or take the rows out: luthier data clean FILE",
    )
