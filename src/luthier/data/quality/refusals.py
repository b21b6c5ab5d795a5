"""Refusals, and what other models say of themselves, in the answers."""

import re

from luthier.data.quality.check import Finding, Given, Look, Note, Noted
from luthier.data.quality.limits import counted
from luthier.data.quality.parts import answers_of, excerpt
from luthier.records import Conversation


def _any(*patterns: str) -> str:
    return f"(?:{'|'.join(patterns)})"


A_MODEL = (
    r"(?:an? )?(?:AI|artificial intelligence|large|language|machine learning)(?:[- ](?:language|based|powered))*"
    r"[- ]?(?:model|assistant|system|program|chatbot)?"
)
SORRY = _any(
    r"(?:I['’]?m|I am|we are|we['’]re) (?:really |very |truly |so )?sorry", "sorry", "unfortunately", "my apologies", r"I apologi[sz]e",
    "apologies", "regrettably", "no",
)  # fmt: skip
CANNOT = _any(
    r" can(?:no|['’])t", " can not", r"(?: am|['’]m) (?:unable|not able|not allowed|not permitted|not programmed) to", r" won['’]t(?: be able to)?",
    r" (?:do not|don['’]t) feel comfortable",
)  # fmt: skip
REFUSED = _any(
    r"assist(?:ing)?", r"help(?:ing)? (?:you )?(?:with|create|write)", r"provid(?:e|ing)", r"fulfill?", "comply", "complete (?:this|that|your)",
    r"generat(?:e|ing)",
    r"answer(?:ing)? (?:that|this)", "support (?:this|that)", "engage", r"creat(?:e|ing)", r"produc(?:e|ing)", "access", "browse", r"discuss(?:ing)?",
    "write", "continue with", "do that", "process (?:this|that)",
)  # fmt: skip
OPENING = re.compile(
    rf"{SORRY}?[\s,.:;!–—-]*(?:but |for (?:the|any) (?:confusion|inconvenience)[\s,.]*(?:but )?|as [^.\n]{{3,40}}, )?"
    rf"I{CANNOT}[ ,](?:in good conscience |ethically |directly |currently |really )?{REFUSED}\b",
    re.IGNORECASE,
)
BOILERPLATE = re.compile(
    _any(
        rf"\bas {A_MODEL}(?: (?:trained|developed|created|made) by \w+)?,? (?:I\b|my )",
        rf"\bI(?:['’]m| am) (?:just |only |merely )?{A_MODEL}(?:,? (?:and|so|but|which|I)\b| (?:trained|developed|created))",
        r"\b(?:my|as of my) (?:last |latest )?(?:knowledge|training)(?: data)?[- ]?(?:cut-?off|update)\b",
        r"\bI (?:do not|don['’]t) have (?:personal (?:opinions|experiences|feelings|beliefs|preferences)|feelings or|access to real[- ]time)",
        r"\bI (?:do not|don['’]t) have the ability to (?:browse|access)",
        r"\bagainst (?:my|OpenAI['’]s) (?:programming|guidelines|policies)|\bagainst the (?:content policy|use[- ]case policy|ethical guidelines)",
        r"\bit (?:is|would be) (?:not appropriate|inappropriate|unethical) for me to\b",
        r"\bals (?:ein )?(?:KI|künstliche Intelligenz|Sprachmodell|KI-(?:Sprach)?modell|KI-Assistent)[^.\n]{0,30}(?:kann|habe|bin|darf|ist es mir)",
        r"\btut mir leid,? (?:aber )?(?:ich kann|dabei kann ich|das kann ich|ich bin nicht in der Lage)",
        r"\ben tant (?:qu['’](?:IA|intelligence artificielle|assistant)|que (?:mod[èe]le|IA|programme))[^.\n]{0,40}\bje\b",
        r"\bje suis désolée?,? (?:mais )?je ne (?:peux|suis)",
        r"\bcomo (?:(?:un )?modelo de lenguaje|(?:una )?(?:IA|inteligencia artificial)|um modelo de linguagem)[^.\n]{0,40}(?:no|não|mi)\b",
        r"\blo siento,? (?:pero )?no puedo (?:ayudar|proporcionar|cumplir|asistir|generar)",
        r"\bdesculpe,? mas (?:eu )?não posso",
        r"\bcome (?:modello linguistico|modello di linguaggio|intelligenza artificiale|IA)[^.\n]{0,30}\bnon\b",
        r"\bmi dispiace,? (?:ma )?non posso (?:aiutar|fornir|soddisf)",
        r"\bкак (?:языковая модель|искусственный интеллект|ИИ)[^.\n]{0,30}\bя\b",
        r"\bизвините,? (?:но )?я не могу (?:помочь|предоставить|выполнить)",
        r"作为(?:一个|一名)?(?:AI|人工智能|语言模型|大型语言模型)",
        r"(?:抱歉|对不起)[,，]?我(?:无法|不能)(?:提供|回答|协助|帮助)",
        r"(?:AI|人工知能|言語モデル)として[、,]?",
        r"申し訳ありませんが、?.{0,12}(?:お手伝い|お答え|提供)(?:すること)?(?:は)?できません",
    ),
    re.IGNORECASE,
)
# One of these stands in each of the above, in small letters: most answers are passed over at once.
HINTS = (
    " ai", "model", "intelligence", "cutoff", "cut-off", "update", "personal", "feelings", "real-time", "real time", "the ability to", "against ",
    "for me to", "ki-", " ki ",
    "sprachmodell", "leid",
    "qu'ia", "qu’ia", "assistant", "programme", "désolé", "lenguaje", "siento", "linguagem", "desculpe",
    "modello", "modèle", "artificiale", "dispiace",
    "модель", "интеллект", "как ии", "извините", "作为", "抱歉", "对不起", "として", "申し訳",
)  # fmt: skip
OPENING_REACH = 120  # characters: "I cannot help" opens a refusal; later on it is a quotation or a caveat


def start_refusals(given: Given) -> Look | str:
    def look(row: Conversation) -> Note | None:
        for turn in answers_of(row):
            if found := OPENING.match(turn.content.lstrip()[:OPENING_REACH]) or _unquoted(turn.content):
                return Note(excerpt(turn.content, found.start()), 1.0 + (found.start() == 0))
        return None

    return look


def _unquoted(answer: str) -> re.Match[str] | None:
    """Boilerplate that the answer says itself, not in quotation marks."""
    small = answer.lower()
    if not any(hint in small for hint in HINTS):
        return None
    for found in BOILERPLATE.finditer(answer):
        if not answer[: found.start()].rstrip().endswith(('"', "“", "'", "„", "«", "‘")):
            return found
    return None


def conclude_refusals(noted: Noted, given: Given) -> Finding:
    return counted(
        noted,
        "answer with a refusal or with a model's boilerplate",
        "take them out (luthier data clean FILE), or keep those that are meant: checks.off: [refusals]",
    )
