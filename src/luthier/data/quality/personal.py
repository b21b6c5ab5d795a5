"""Personal data and secrets: e-mail addresses, telephone numbers, cards, accounts and keys. Shown masked, never in full."""

import re
from collections import Counter
from collections.abc import Iterator

from luthier.data.quality.check import Finding, Given, Look, Note, Noted
from luthier.data.quality.limits import counted
from luthier.data.quality.parts import turns_of
from luthier.records import Conversation

EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![\w@])")
# RFC 2606 and RFC 6761 keep these for examples; git@host is no mailbox.
NOBODYS = re.compile(
    r"@(?:[\w-]+\.)*(?:example|test|invalid|localhost)(?:\.(?:com|org|net))?$|@(?:domain|yourdomain|company|email)\.com$|^git@|^(?:user|name|you|your\.?name)@",
    re.I,
)
NUMBER = re.compile(r"(?<![\w.,$€£/=-])\+?\(?\d[\d ()./–-]{5,24}\d(?![\w/=]|[.,]\d)")
NORTH_AMERICA = re.compile(r"(?:\+?1[ .-]?)?(?:\([2-9]\d\d\) ?|[2-9]\d\d([ .-]))[2-9]\d\d(?(1)\1|[ .-])\d{4}")
INTERNATIONAL = re.compile(r"\+(?:[1-9]\d{0,2})(?:[ .–-]?\(?\d{1,5}\)?){2,6}")
NATIONAL = re.compile(r"\(?0\d{1,4}\)?(?: / |[ /–-])?\d{2,4}(?:[ –-]?\d{2,5}){1,3}")
CALLED = re.compile(
    r"(?:tel|phone|telefon|téléphone|teléfono|telefone|mobile?|handy|fax|call|text|reach|whatsapp|ring|cell|rufnummer|hotline|anrufen|appel\w*|llam\w*)[^\n\d]{0,25}$",
    re.I,
)
FICTION = re.compile(r"555[ .-]?01\d\d$")  # 555-0100 to 555-0199 are kept for films
SOCIAL_SECURITY = re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")
CARD = re.compile(
    r"(?<![\d.-])(?:4\d{3}|5[1-5]\d\d|2[2-7]\d\d|6(?:011|5\d\d))(?:[ -]?\d{4}){3}(?![\d-])|"
    r"(?<![\d.-])3[47]\d\d[ -]?\d{6}[ -]?\d{5}(?![\d-])"
)
ACCOUNT = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
KEYS = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_\w{60,}|\bglpat-[\w-]{20,}|"
    r"\bsk-(?:proj-|ant-|or-)?[\w-]{20,}|\b[sr]k_(?:live|test)_[A-Za-z0-9]{20,}|"
    r"\bAIza[\w-]{35}|\bxox[abprs]-[\w-]{10,}|\bhf_[A-Za-z0-9]{30,}|\bSG\.[\w-]{16,}\.[\w-]{16,}|"
    r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}|-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----|"
    r"\b(?i:api[_-]?key|secret[_-]?key|access[_-]?token|auth[_-]?token)['\"]?\s*[:=]\s*['\"]?[A-Za-z0-9/+_-]{24,}"
)
KEY_HINT = re.compile(r"AKIA|ASIA|gh[pousr_]|glpat|sk-|[sr]k_|AIza|xox|hf_|SG\.|eyJ|PRIVATE|(?i:key|token)['\"]?\s*[:=]")
PLACEHOLDER = re.compile(r"example|your|placeholder|xxxx|changeme|dummy|1234567890abcdef", re.I)
TEST_CARDS = {
    "4111111111111111",
    "4242424242424242",
    "5555555555554444",
    "378282246310005",
    "4012888888881881",
    "5105105105105100",
    "6011111111111117",
}
HINT = re.compile(r"@|\d{3}|\d\d[ .–-]\d\d|" + KEY_HINT.pattern)


def start_pii(given: Given) -> Look | str:
    def look(row: Conversation) -> Note | None:
        kinds: dict[str, str] = {}
        for turn in turns_of(row):
            if HINT.search(turn.content):
                for kind, value in personal_in(turn.content):
                    kinds.setdefault(kind, value)
        if not kinds:
            return None
        # A key or a card does harm by itself; an e-mail address is often public.
        weight = 3.0 if kinds.keys() & {"key", "card", "account", "social security number"} else float(len(kinds))
        return Note("; ".join(f"{kind} {value}" for kind, value in kinds.items()), weight, ",".join(sorted(kinds)))

    return look


def personal_in(text: str) -> Iterator[tuple[str, str]]:
    """What is found, as (kind, masked value)."""
    if "@" in text:
        yield from (("e-mail", _masked(found[0])) for found in EMAIL.finditer(text) if not NOBODYS.search(found[0]))
    if KEY_HINT.search(text):
        yield from (("key", _masked(found[0])) for found in KEYS.finditer(text) if not PLACEHOLDER.search(found[0]) and _is_random(found[0]))
    cards = [found for found in CARD.finditer(text) if _luhn(digits_of(found[0])) and digits_of(found[0]) not in TEST_CARDS]
    yield from (("card", _masked(found[0])) for found in cards)
    accounts = [found for found in ACCOUNT.finditer(text) if _is_account(found[0])]
    yield from (("account", _masked(found[0])) for found in accounts)
    yield from (("social security number", _masked(found[0])) for found in SOCIAL_SECURITY.finditer(text))
    taken = [found.span() for found in (*cards, *accounts)]
    for found in NUMBER.finditer(text):
        if not any(start < found.end() and found.start() < end for start, end in taken) and _is_phone(found, text):
            yield "phone", _masked(found[0])


def _is_phone(found: re.Match[str], text: str) -> bool:
    number = found[0].strip()
    if FICTION.search(number) or not 7 <= len(digits_of(number)) <= 15 or len(set(digits_of(number))) < 3:
        return False
    if NORTH_AMERICA.fullmatch(number):
        return True
    if number.startswith("+"):
        return INTERNATIONAL.fullmatch(number) is not None and len(digits_of(number)) >= 9
    return CALLED.search(text[max(0, found.start() - 45) : found.start()]) is not None and (
        NATIONAL.fullmatch(number) is not None or len(digits_of(number)) in (10, 11)
    )


def digits_of(text: str) -> str:
    return "".join(character for character in text if "0" <= character <= "9")


def _luhn(digits: str) -> bool:
    """The check sum of payment cards (ISO/IEC 7812-1, annex B)."""
    doubled = [sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2]]
    return len(set(digits)) > 2 and (sum(doubled) + sum(map(int, digits[-1::-2]))) % 10 == 0


def _is_account(text: str) -> bool:
    """The check sum of an IBAN (ISO 13616): 1 modulo 97, letters being 10 to 35."""
    bare = text.replace(" ", "")
    return 15 <= len(bare) <= 34 and int("".join(str(int(character, 36)) for character in bare[4:] + bare[:4])) % 97 == 1


def _is_random(key: str) -> bool:
    """Whether a key looks drawn: placeholders repeat a letter."""
    return "PRIVATE KEY" in key or (len(set(key[-20:])) >= 8 and any(character.isdigit() for character in key))


def _masked(value: str) -> str:
    """The two ends of a value: enough to find it, not enough to use it."""
    if "@" in value:
        name, _, host = value.partition("@")
        return f"{name[0]}***@***{host[host.rindex('.') :]}"
    bare = value.strip()
    return f"{bare[:2]}***{bare[-2:]}" if "PRIVATE KEY" not in bare else "a private key"


def conclude_pii(noted: Noted, given: Given) -> Finding:
    kinds = Counter(kind for _, note in noted.notes for kind in note.kind.split(",") if kind)
    said = ", ".join(f"{kind} in {times:,}" for kind, times in kinds.most_common())
    return counted(
        noted,
        "hold personal data or secrets" + (f" ({said})" if said else ""),
        "a model can repeat them word for word: replace them by made-up values, or take the rows out: luthier data clean FILE",
        numbers={"kinds": dict(kinds)},
    )
