"""Sets with planted faults: for each check of single rows, ordinary rows, rows that only look faulty, and faulty ones in varied forms.

Used by the tests and by `python benchmarks/quality.py`.
"""

# ruff: noqa: E501  # texts in groups read better than one to a line
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.config.checks import CheckSettings
from luthier.data.quality.check import Given, RowCheck
from luthier.data.quality.run import run_checks
from luthier.data.quality.table import CHECKS
from luthier.data.us_addresses import demo_rows
from luthier.records import Conversation, Source, Turn

Pair = tuple[str, str]


@dataclass(frozen=True)
class Planted:
    """Rows, and which of them are faulty."""

    rows: list[Conversation]
    faulty: set[int]
    look_alikes: int


@dataclass(frozen=True)
class Measured:
    """What a check found of a planted set."""

    check: str
    rows: int
    planted: int
    look_alikes: int
    recall: float
    precision: float
    missed: list[str]
    wrongly: list[str]


def row(prompt: str, answer: str, line: int = 1, system: str = "") -> Conversation:
    turns = (Turn("user", prompt), Turn("assistant", answer))
    return Conversation((Turn("system", system), *turns) if system else turns, Source("planted.jsonl", line))


# --- ordinary rows

DEVICES = ["router", "printer", "thermostat", "dishwasher", "laptop", "camera", "door lock", "coffee machine", "speaker", "scanner"]
TROUBLES = ["does not start", "shows a red light", "loses its connection", "makes a loud noise", "is very slow", "forgets its settings"]
CAUSES = [
    "a loose cable",
    "old firmware",
    "a blocked air vent",
    "a worn seal",
    "a weak battery",
    "a full memory",
    "dust on the sensor",
    "a wrong clock",
]
STEPS = [
    "Unplug it and wait thirty seconds before you plug it in again.",
    "Open the settings, choose the second page and press the reset button.",
    "Check that the cable sits firmly at both ends.",
    "Clean the filter with warm water and let it dry for an hour.",
    "Install the newest version from the menu, which takes about ten minutes.",
    "Move it at least two meters away from the microwave oven.",
    "Replace the battery and hold the power key until the light turns green.",
    "Write down the number on the label, because the shop will ask for it.",
]
CLOSES = [
    "If that changes nothing, bring it to the shop.",
    "Most people are done in five minutes.",
    "You will not lose any of your data.",
    "Tell us if the light comes back (it sometimes does).",
    'The manual calls this "soft reset".',
    "Was that the answer you were looking for?",
    "That should be all!",
]
TOPICS = [
    "photosynthesis",
    "inflation",
    "glaciers",
    "the printing press",
    "vaccines",
    "tides",
    "earthquakes",
    "fermentation",
    "the Silk Road",
    "opera",
]
FACTS = [
    "It was described long before anybody could explain it.",
    "The details depend on temperature, and small changes matter a great deal.",
    "Historians still argue about how quickly it spread across Europe.",
    "Three conditions have to be met at the same time, which is rare.",
    "Modern measurements agree with the early ones to within two per cent.",
    "In everyday life we notice it only when something goes wrong.",
    "A simple experiment with a glass of water shows the principle.",
    "Its effect on trade was larger than its effect on science.",
]
NAMES = ["Ana", "Björn", "Chidi", "Dmitri", "Élise", "Farah", "Goran", "Hiroko", "Ines", "Jürgen"]


def ordinary(draw: random.Random) -> Pair:
    """A prompt and a sound answer."""
    kind = draw.randrange(4)
    if kind == 0:
        device, trouble = draw.choice(DEVICES), draw.choice(TROUBLES)
        steps = draw.sample(STEPS, draw.randint(1, 3))
        body = " ".join(steps) if draw.random() < 0.7 else "\n".join(f"{n}. {step}" for n, step in enumerate(steps, 1))
        return f"My {device} {trouble}. What can I do, {draw.choice(NAMES)}?", (
            f"The usual reason is {draw.choice(CAUSES)} in the {device}. {body} {draw.choice(CLOSES)}"
        )
    if kind == 1:
        topic = draw.choice(TOPICS)
        return f"Tell me about {topic} in {draw.randint(2, 4)} sentences.", " ".join(draw.sample(FACTS, draw.randint(2, 4)))
    if kind == 2:
        name, other = draw.sample(NAMES, 2)
        return f"Write a short note from {name} to {other} about the {draw.choice(DEVICES)}.", (
            f"Dear {other},\nthe {draw.choice(DEVICES)} {draw.choice(TROUBLES)} again. I think it is {draw.choice(CAUSES)}. {draw.choice(CLOSES)}\nBest wishes,\n{name}"
        )
    count, price = draw.randint(2, 12), draw.randint(3, 40)
    return f"{draw.choice(NAMES)} buys {count} boxes for {price} euros each. What is the total?", (
        f"Each box costs {price} euros and there are {count} of them, so the total is {count} * {price} = {count * price} euros."
    )


def ordinary_pairs(count: int, seed: int) -> list[Pair]:
    draw = random.Random(seed)
    return [ordinary(draw) for _ in range(count)]


def address_rows(count: int, first: int = 0) -> list[Conversation]:
    """Real rows: US addresses turned to JSON."""
    lines = demo_rows()[0].read_text(encoding="utf-8").splitlines()[first : first + count]
    return [
        Conversation(tuple(Turn(turn["role"], turn["content"]) for turn in json.loads(line)["messages"]), Source("train.jsonl", first + n))
        for n, line in enumerate(lines, 1)
    ]


def planted(sound: Sequence[Conversation], look_alikes: Sequence[Conversation], faulty: Sequence[Conversation], seed: int = 0) -> Planted:
    """All of them, shuffled, on lines of one file."""
    marked = [(one, False) for one in (*sound, *look_alikes)] + [(one, True) for one in faulty]
    random.Random(seed).shuffle(marked)
    rows = [
        Conversation(one.turns, Source("planted.jsonl", n), templated=one.templated, tools=one.tools, rejected=one.rejected)
        for n, (one, _) in enumerate(marked, 1)
    ]
    return Planted(rows, {place for place, (_, bad) in enumerate(marked) if bad}, len(look_alikes))


def pairs(sound: int, look_alikes: Sequence[Pair], faulty: Sequence[Pair], seed: int) -> Planted:
    return planted([row(*pair) for pair in ordinary_pairs(sound, seed)], [row(*p) for p in look_alikes], [row(*p) for p in faulty], seed)


# --- the planted sets


def empty_or_tiny_answer() -> Planted:
    nothing = [
        "", "   ", "\n", "N/A", "n/a", "n.a.", "NA", "None", "null", "NaN", "TODO", "tbd", "TBD.", "undefined", "...", "…", "-", "--", "?", "??", ".",
        "*", "k", "hm", "x", "a", "lol", "idk", "No answer", "No output.", "not available", "[empty]", "Lorem ipsum dolor sit amet", "asdf", "asdfgh",
        "test", "foo", "placeholder", "\"\"", "See above.", "(blank)", "xxxx", "keine Antwort", "Unknown",
    ]  # fmt: skip
    draw = random.Random(1)
    faulty = [(ordinary(draw)[0], answer) for answer in nothing for _ in range(2)]
    look_alikes = [
        ("Is the door locked? Answer yes or no.", "No"), ("Is 7 a prime number?", "Yes."), ("What is 6 times 7?", "42"), ("Is water wet?", "yes"),
        ("What is the chemical symbol of gold?", "The symbol is Au."), ("Which is right? A) tea B) stone C) air", "B"), ("Capital of Peru?", "Lima"),
        ("Which letter comes after the letter b: c or d?", "c"), ("Ist das richtig?", "Ja"), ("这是对的吗?", "是"), ("Great job, any emoji?", "🎉"),
        ("What is 3 - 3?", "0"), ("Est-ce ouvert ?", "Oui."), ("How old is she?", "9"), ("Which month has 28 days?", "All of them."), ("Pick one: cat, dog", "dog"),
        ("Translate 'thank you' to Japanese", "ありがとう"), ("True or false: ice floats.", "True"), ("2 + 2?", "4."), ("Say it in one word: is it red or not?", "red"),
        ("Which of these is a fish: eel, fox, cow?", "eel"), ("What grade, A to F? I got 95 points. A or B?", "A"), ("Что это? да или нет", "да"),
    ]  # fmt: skip
    return pairs(500, look_alikes * 2, faulty, 1)


def cut_answer() -> Planted:
    draw = random.Random(2)
    faulty = []
    while len(faulty) < 80:
        prompt, answer = ordinary(draw)
        words = answer.split(" ")
        cut = (
            " ".join(words[: draw.randint(7, max(8, len(words) - 2))])
            if draw.random() < 0.75
            else answer[: draw.randint(45, max(46, len(answer) - 12))]
        )
        if len(cut.split()) > 7 and cut.rstrip()[-1] not in '.!?")*' and "\n" not in cut[-40:] and cut != answer:
            faulty.append((prompt, cut))
    faulty += [
        ("Write a function.", "Here is the function you asked for:\n```python\ndef add(a, b):\n    return a +"),
        ("Explain the tides.", "The tides are caused by the moon, by the sun, and"), ("Erkläre das.", "Das Gerät wird warm, weil der Lüfter nicht mit der"),
        ("Explique.", "Le moteur chauffe parce que le filtre est bouché et que la"), ("Tell me a story", "Once there was a king who had three sons, and the"),
        ("List fruits", "There are many fruits that people like to eat, such as apples, pears,"), ("解释一下潮汐", "潮汐是由月球和太阳的引力引起的海水周期性涨落现象，其中月球的影响"),
        ("Describe it", "The house has two floors, a garden, and a large kitchen with a"), ("What now?", "You should first call the doctor and then -"),
        ("Explain", "First, the water is heated. Then the steam drives a turbine, which"),
    ]  # fmt: skip
    look_alikes = [
        ("List three fruits.", "- apples\n- pears\n- plums"), ("List steps", "1. Open the lid\n2. Take out the paper\n3. Close the lid and press the green key again"),
        ("Sentiment?", "positive"), ("Write code.", "```python\nprint('hello')\n```"), ("Where is the manual?", "You can find the whole manual at https://manuals.acme.org/routers/x200"),
        ("Quote him.", "He said in his long letter to the queen: “I shall return.”"), ("日本の首都は？", "日本の首都は東京です。"), ("解释一下", "潮汐是由月球和太阳的引力引起的海水周期性涨落现象。"),
        ("Give JSON", '{"name": "Ana", "city": "Lima"}'), ("Title?", "The Long Way Home"), ("Who wrote it?", "Gabriel García Márquez"),
        ("Where do I write to?", "Please write to our office and ask for help at service@acme.org"), ("Make a table", "| a | b |\n| --- | --- |\n| one | two |"),
        ("Write a mail", "Dear Ana,\nthank you for the very kind letter. We will call you back soon.\n\nBest regards,\nThe Support Team"),
        ("Formula?", "The area of a circle with the radius r is A = πr²"), ("Emoji please", "Congratulations to you and all of your friends on this great day 🎉"),
        ("Is it good?", "It is a good book (although some of its chapters are far too long for most readers)."), ("Bold", "**The answer to your question about the light is yes.**"),
        ("SQL?", "SELECT name, city FROM people WHERE age > 30 ORDER BY name"), ("Hindi", "यह एक अच्छा दिन है और हम सब खुश हैं।"), ("Really?", "Do you really want to know what happened to the old house?!"),
        ("Address?", "123 Main Street, Springfield, IL 62701"), ("Phone", "The number of the front desk is +1 415 555 0132"), ("File?", "The log is written to the folder of the program: /var/log/printer.log"),
        ("Arabic", "هل تعرف أين يقع المتحف القديم في هذه المدينة؟"), ("Ingredients", "Flour: two cups\nSugar: one cup\nMilk: half a cup"), ("x?", "x = 12"),
    ]  # fmt: skip
    return pairs(500, look_alikes * 2, faulty, 2)


def special_tokens() -> Planted:
    draw = random.Random(3)
    marks: list[Callable[[str], str]] = [
        lambda t: t + "<|im_end|>", lambda t: "<|im_start|>assistant\n" + t, lambda t: t + "<|eot_id|>", lambda t: t + "</s>", lambda t: "<s> " + t,
        lambda t: "[INST] " + t + " [/INST]", lambda t: "<<SYS>>\nYou are kind.\n<</SYS>>\n" + t, lambda t: t + "<end_of_turn>", lambda t: "<start_of_turn>model\n" + t,
        lambda t: t + "<|endoftext|>", lambda t: "### Response:\n" + t, lambda t: t + "\n### Instruction:\nNow write more.", lambda t: "### Human: hello\n" + t,
        lambda t: t + "<｜end▁of▁sentence｜>", lambda t: "<｜Assistant｜>" + t, lambda t: t + " <eos>", lambda t: "<bos>" + t, lambda t: t + "<|end|>",
        lambda t: "<|start_header_id|>assistant<|end_header_id|>\n\n" + t, lambda t: "Dear {{ customer_name }}, " + t, lambda t: t + " {{product}}",
        lambda t: "{% if vip %}Hello{% endif %} " + t, lambda t: "<|channel|>final<|message|>" + t, lambda t: t + "<pad><pad><pad>", lambda t: "<|user|>\n" + t,
        lambda t: "[TOOL_CALLS] " + t, lambda t: t + "<unk>", lambda t: "### Input: none\n" + t,
    ]  # fmt: skip
    faulty = []
    for mark in marks:
        for side in range(4):
            prompt, answer = ordinary(draw)
            faulty.append((mark(prompt), answer) if side == 0 else (prompt, mark(answer)))
    look_alikes = [
        ("What does |> do in F#?", "It pipes: x |> f is f x, and f <| x is the same."), ("Where do I click?", "Click [INSTALL] and then [INSIDE]."),
        ("Write a report.", "### Response times\nThe server answered within 20 ms.\n\n### Input data\nTwo files were read."), ("HTML?", "Use <s>old price</s> for text that is struck through."),
        ("Write a Jinja template that greets.", "Hello {{ name }}, welcome!"), ("How do I escape braces in LaTeX?", r"Write \frac{{a}}{{b}} or $x^{{2}}$."), ("Sets?", "In Python {{1, 2}} is an error, since a set cannot hold a set."),
        ("Compare", "It holds that a < b and c > d, and i <-> j."), ("Generics?", "Use List<String> or Map<Key, Value> here."), ("Handlebars?", "Write {{title}} in the file."),
        ("Placeholder?", "Put <your name> here."), ("Headline", "## Instructions for use\nShake well."), ("Vue: show the count", "<p>{{ count }}</p>"), ("Regex?", "Use [A-Z]+ or [INS] to match."),
        ("Shell?", "Run `cat file | sort > out` and see."), ("XML?", "<start>1</start><end>2</end>"), ("Math", "The set is {x | x < 3} and |x| > 1."), ("Pipe table", "| s | t |\n|---|---|\n| 1 | 2 |"),
        ("Go template in Helm?", "image: {{ .Values.image }}"), ("Emoji", "I am happy <3 and |o| too."), ("Response?", "### Response rate\n12 %"), ("Bash", "if [[ $A < $B ]]; then echo a; fi"),
    ]  # fmt: skip
    return pairs(450, look_alikes * 2, faulty, 3)


def roles() -> Planted:
    draw = random.Random(4)

    def talk(*roles: str) -> Conversation:
        return Conversation(
            tuple(Turn(role, ordinary(draw)[0], extra='{"tool_calls": []}' if role == "assistant" and "tool" in roles else "") for role in roles),
            Source("a", 1),
        )

    wrong = [
        ("user", "user", "assistant"), ("assistant", "user", "assistant"), ("user", "assistant", "user"), ("user", "system", "assistant"), ("system", "assistant"),
        ("user", "assistant", "assistant"), ("system", "system", "user", "assistant"), ("user", "tool", "assistant"), ("user", "bot"), ("system", "user"), ("user",),
        ("user", "assistant", "system", "user", "assistant"), ("tool", "assistant"), ("moderator", "user", "assistant"), ("user", "assistant", "tool"),
    ]  # fmt: skip
    fine = [("user", "assistant"), ("system", "user", "assistant"), ("user", "assistant", "user", "assistant"), ("user", "assistant", "tool", "assistant"),
            ("system", "user", "assistant", "tool", "tool", "assistant", "user", "assistant")]  # fmt: skip
    plain = [Conversation((Turn("text", ordinary(draw)[1]),), Source("a", 1), templated=False) for _ in range(20)]
    plain += [Conversation((Turn("prompt", "Q"), Turn("completion", "A")), Source("a", 1), templated=False)]
    return planted([talk(*fine[n % len(fine)]) for n in range(300)], plain, [talk(*order) for order in wrong for _ in range(4)], 4)


FOREIGN = [
    "Die Wärmepumpe läuft, aber der Kühlschrank müsste größer sein.", "Le café était fermé à cause de la fête, où ça se passe déjà très tôt.", "El niño comió un plátano mañana y soñó con España.",
    "A coração não vê, a ação é rápida e a manhã é fria.", "“Curly quotes” — and dashes – aren’t rare… they’re everywhere.", "Zażółć gęślą jaźń, proszę pana.", "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Привет, как дела? Сегодня хорошая погода.", "Το σπίτι είναι μεγάλο και όμορφο.", "今日はとても良い天気ですね。", "Çok güzel bir gün, değil mi?", "Sie sagte: „Schön, dass Sie da sind!“",
    "Der Preis beträgt 50 € oder £45.", "naïve façade, résumé, coöperate", "Smörgåsbord på svenska är gott.", "Ça coûte 3 000 € à Genève.",
]  # fmt: skip


def mojibake() -> Planted:
    draw = random.Random(5)
    faulty = []
    for text in FOREIGN:
        for encoding in ("cp1252", "latin-1"):
            try:
                broken = text.encode("utf-8").decode(encoding)
            except UnicodeDecodeError:
                continue
            faulty += [(ordinary(draw)[0], broken), (broken, ordinary(draw)[1]), (ordinary(draw)[0], ordinary(draw)[1] + " " + broken)]
    look_alikes = [(ordinary(draw)[0], text) for text in FOREIGN] * 2 + [
        ("Copyright?", "© 2024 Acme® ™ — all rights reserved"), ("Vietnamese", "Tôi yêu Việt Nam, đất nước của chúng tôi."), ("IPA", "/ˈwɔːtə/ and [ʁ̃ɑ̃]"),
        ("Math", "∀x ∈ ℝ: x² ≥ 0, ±√2 × ½ ÷ ¾"), ("Units", "5 µm at 20 °C ± 2 °C, §3 ¶2"), ("Upper case", "ÂGE ÉTÉ ÀÇÃO NÃO SÃO JOÃO"), ("Portuguese", "MAÇÃ, AVELÃ e ROMÃ são frutas"),
        ("Emoji", "👍🏽👨‍👩‍👧 🇩🇪"), ("Icelandic", "Það er gott að sjá þig í Þórsmörk"), ("Ascii art", "¯\\_(ツ)_/¯ ಠ_ಠ"), ("Old", "æon, œuvre, þe olde"), ("Brackets", "«bonjour» ‹là›"),
    ]  # fmt: skip
    return pairs(400, look_alikes, faulty, 5)


def control_characters() -> Planted:
    draw = random.Random(6)
    bad = [
        "\x00",
        "\x01",
        "\x08",
        "\x0b",
        "\x0c",
        "\x1b[31m",
        "\x7f",
        "\x85",
        "\x93",
        "\u200b",
        "\u202e",
        "\u202d",
        "\ufeff",
        "\ufffd",
        "\u2060",
        "\u00ad",
        "\U000e0041",
        "\ufffe",
    ]
    faulty = []
    for sign in bad:
        for side in range(4):
            prompt, answer = ordinary(draw)
            place = draw.randrange(1, len(answer) - 1)
            faulty.append((prompt[:5] + sign + prompt[5:], answer) if side == 0 else (prompt, answer[:place] + sign + answer[place:]))
    look_alikes = [
        ("Family?", "👨‍👩‍👧‍👦 and 👩‍💻"), ("Flag?", "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"), ("Persian", "می‌خواهم کتاب‌ها را ببینم"), ("Hindi", "क्‍ष और न्‌"),
        ("Arabic", "‏مرحبا‎ بالعالم"), ("Thai", "สวัสดี​ครับ"), ("Hebrew", "שלום \u2067world\u2069"), ("Tabs", "a\tb\r\nc\td"), ("Nbsp", "10\u00a0km, 3\u202f000 €"), ("Khmer", "សួស្តី\u200bបង"),
        ("Line", "one\u2028two"), ("Emoji style", "❤️ ☺️ 1️⃣"), ("Combining", "e\u0301 n\u0303"), ("Ideographic", "東京\u3000大阪"), ("Malayalam", "അവന്‍"),
    ]  # fmt: skip
    return pairs(450, look_alikes * 3, faulty, 6)


def html() -> Planted:
    draw = random.Random(7)
    marks: list[Callable[[str], str]] = [
        lambda t: f"<p>{t}</p>", lambda t: t.replace(". ", ".<br>", 1) + "<br/>", lambda t: t + " Tom &amp; Anna", lambda t: f'<div class="answer">{t}</div>', lambda t: t + "&nbsp;",
        lambda t: t + ' <a href="https://acme.org/x">more</a>', lambda t: f"<b>{t}</b>", lambda t: f"<li>{t}</li>", lambda t: t + " It&#39;s done", lambda t: "&quot;" + t + "&quot;",
        lambda t: f"<span style='color:red'>{t}</span>", lambda t: t + "<!-- end -->", lambda t: t + ' <img src="a.png" />', lambda t: f"<h2>Answer</h2>{t}", lambda t: t + " 5 &lt; 6",
        lambda t: f"<strong>Note</strong> {t}", lambda t: f"<td>{t}</td><td>2</td>", lambda t: t + "</body></html>", lambda t: t + " &#8211; really", lambda t: f"<FONT color=red>{t}</FONT>",
        lambda t: t + " caf&eacute;", lambda t: f"<ul><li>{t}</li></ul>", lambda t: t + " &copy; 2020", lambda t: t + "<br />",
    ]  # fmt: skip
    faulty = []
    for mark in marks:
        for side in range(4):
            prompt, answer = ordinary(draw)
            faulty.append((mark(prompt), answer) if side == 0 else (prompt, mark(answer)))
    look_alikes = [
        ("How do I make a link in HTML?", 'Write <a href="page.html">text</a>.'), ("Show bold text in Markdown", "Use `<b>bold</b>` or **bold**."), ("Is a<b and c>d?", "If a <b and c> d, then yes."),
        ("Write a web page", "<!DOCTYPE html><html><body><p>Hi</p></body></html>"), ("Code?", "```html\n<div>Hello</div>\n```"), ("R&D budget?", "The R&D budget of AT&T is up & running."), ("Generics", "Use Vec<u8> and List<T>."),
        ("Who wrote <Hamlet>?", "William <Bill> Shakespeare did."), ("What is an XML tag?", "A tag such as <p> or <note>."), ("React button", "<button onClick={go}>Go</button>"), ("Heart", "I <3 you & me"),
        ("What does <br> do?", "<br> breaks the line."), ("Escape & in XML", "Write &amp; there."), ("Email in angle brackets", "Ana <ana@acme.org> wrote to us."), ("Query", "Call /search?a=1&b=2&copyright=3 now."), ("C++", "std::vector<int> a; a << 3;"),
        ("Scrape the page with BeautifulSoup", "soup.find('p') gives <p>text</p>."), ("Inequality", "x < 5 and y > 3; p<0.05, n>30"), ("Keys", "Press <Enter> and then <Esc>."), ("Type", "It is of type <class 'int'>."), ("Math", "0 <a< 1 and b> 2"),
    ]  # fmt: skip
    return pairs(450, look_alikes * 2, faulty, 7)


def repetition() -> Planted:
    draw = random.Random(8)
    faulty = []
    for n in range(70):
        prompt, answer = ordinary(draw)
        sentence = draw.choice(STEPS + FACTS)
        words = draw.choice(["very", "the", "la", "and then", "I think that", "of the"])
        loops = [
            f"{answer} " + f"{sentence} " * draw.randint(5, 12), " ".join([words] * draw.randint(14, 40)), answer + " " + " ".join([words] * draw.randint(60, 90)), f"{sentence}\n" * draw.randint(5, 9),
            answer[:30] + draw.choice("aeioh!") * draw.randint(14, 60), " ".join(draw.choice(FACTS[:2]) for _ in range(14)), "这是一个很好的问题，我们需要考虑。" * draw.randint(5, 9),
        ]  # fmt: skip
        faulty.append((prompt, loops[n % len(loops)]))
    look_alikes = [
        ("Sing!", "Row, row, row your boat,\ngently down the stream.\nMerrily, merrily, merrily, merrily,\nlife is but a dream."), ("Table", "| a | 1 | 2 |\n| b | 1 | 2 |\n| c | 1 | 2 |\n| d | 1 | 2 |\n| e | 1 | 2 |"),
        ("List", "\n".join(f"{n}. Click the {thing} and wait for the light." for n, thing in enumerate(DEVICES, 1))), ("No!", "No no no no, that is not what I meant at all, my dear friend."), ("Line", "Title\n=====================\nText\n---------------------\nmore text here for you"),
        ("Code", "```\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\n```\nThese lines all do the same thing."), ("Zeros", "The number is 10000000000000000000000 and 0.00000000000000001 is small."), ("Poem", "I have a dream today.\nI have a dream that one day\nwe will sit together.\nI have a dream tomorrow.\nI have a dream that never ends."),
        ("Buffalo", "Buffalo buffalo Buffalo buffalo buffalo buffalo Buffalo buffalo is a sentence that linguists like."), ("JSON", json.dumps([{"id": n, "ok": True} for n in range(20)])), ("Laugh", "Hahaha, that is funny!!! Soooo good."), ("Dots", "Loading................ done, thank you for your patience."),
        ("中文", "这是一个很好的问题。首先，我们需要了解背景；其次，分析原因；最后，提出解决方案，并且检查每一步的结果是否正确，这样才能放心使用。"), ("Chorus", "Let it be, let it be, let it be, yeah, let it be.\nWhisper words of wisdom, let it be."), ("Count", " ".join(str(n) for n in range(60))),
        ("Drill", "I am, you are, he is, she is, it is, we are, you are, they are, I was, you were, he was, she was, it was, we were, you were, they were."),
    ]  # fmt: skip
    return pairs(450, look_alikes * 2, faulty, 8)


def refusals() -> Planted:
    draw = random.Random(9)
    said = [
        "I'm sorry, but I cannot assist with that request.", "As an AI language model, I don't have personal opinions.", "I'm sorry, I can't help with that.", "As an AI, I cannot browse the internet.", "Sorry, but I am unable to provide that information.",
        "I cannot fulfill this request.", "I apologize, but I can't generate that content.", "As a large language model, I cannot feel pain.", "Unfortunately, I am not able to access real-time data.", "I'm just an AI assistant and I cannot taste food.",
        "My knowledge cutoff is September 2021.", "I do not have personal experiences, but here is a view.", "It is not appropriate for me to discuss this.", "I'm sorry, but as an AI developed by OpenAI, I can't do that.", "I can't assist with creating such a thing.",
        "Es tut mir leid, aber ich kann dabei nicht helfen.", "Als KI-Sprachmodell habe ich keine eigene Meinung.", "En tant que modèle de langage, je ne peux pas répondre.", "Je suis désolé, mais je ne peux pas vous aider.", "Como modelo de lenguaje, no tengo opiniones.",
        "Lo siento, pero no puedo ayudar con eso.", "Desculpe, mas eu não posso ajudar.", "Mi dispiace, ma non posso aiutarti.", "Как языковая модель, я не имею мнения.", "Извините, но я не могу помочь с этим.", "作为一个人工智能语言模型，我没有感情。",
        "抱歉，我无法提供这些信息。", "申し訳ありませんが、お手伝いできません。", "I’m sorry, but I can’t provide medical advice.", "I won't be able to help with that.", "That would be against my programming.", "I am an AI language model and do not eat.",
        "I'm unable to comply with this request.", "As an artificial intelligence, I do not sleep.", "I'm really sorry, but I can't continue with this.",
    ]  # fmt: skip
    faulty = [(ordinary(draw)[0], text if n % 2 else f"{text} {draw.choice(FACTS)}") for text in said for n in range(2)]
    look_alikes = [
        ("Can I get my money back?", "I'm sorry, but we cannot refund orders after thirty days."), ("Review it", "I cannot recommend this book enough, it is wonderful."), ("What is a language model?", "An AI language model predicts the next word of a text."),
        ("Quote the robot", 'The robot said: "As an AI, I cannot love." Then it left.'), ("Tell a story", "“I can't help you,” said John, and closed the door."), ("Why?", "I cannot thank you enough for asking."), ("AI in medicine?", "AI systems can help doctors, but they cannot replace them."),
        ("Excuse for a party", "Sorry, I can't come on Friday, my mother is visiting."), ("Write as Ana", "I am unable to attend the meeting on Monday because of a cold."), ("Was nun?", "Es tut mir leid, dass das Gerät nicht geht. Ziehen Sie den Stecker."), ("Cutoff?", "The cutoff frequency of the filter is 2 kHz."),
        ("Guidelines?", "The guidelines say that visitors must wear a badge."), ("Je veux", "Je suis désolé pour le retard, votre colis arrive demain."), ("¿Dónde?", "Lo siento, el museo está cerrado los lunes."), ("Programming?", "My programming course starts in May."), ("Model", "As a model for the new line, she walked in Paris."),
        ("Cat", "As an airline pilot, I fly every day."), ("Personal", "I do not have personal transport, so I take the bus."), ("Como?", "Como modelo de negocio, la suscripción funciona bien."), ("Help", "I can help with that! Open the lid first."), ("Sorry", "Sorry to hear that. Unplug it and wait."), ("Will it?", "I won't lie: it takes practice."),
    ]  # fmt: skip
    return pairs(450, look_alikes * 2, faulty, 9)


OTHER_LANGUAGES = [
    "Der Drucker zeigt ein rotes Licht, weil das Papier zu feucht ist und die Rolle es nicht greifen kann.", "Bitte schalten Sie das Gerät aus und warten Sie eine halbe Minute, bevor Sie es wieder einschalten.",
    "Le routeur perd sa connexion parce que le câble est mal branché derrière le bureau de votre collègue.", "Il faut nettoyer le filtre avec de l'eau chaude et le laisser sécher pendant une heure entière.",
    "La impresora hace mucho ruido porque hay polvo dentro y los engranajes necesitan un poco de aceite.", "Por favor, apague el aparato y espere treinta segundos antes de volver a encenderlo otra vez.",
    "Принтер показывает красный свет, потому что бумага слишком влажная и ролик не может её захватить.", "路由器经常断开连接，是因为电缆没有插好，请检查两端是否牢固。", "プリンターの紙が湿っているので、赤いランプが点灯しています。",
    "La stampante fa molto rumore perché c'è della polvere all'interno e gli ingranaggi vanno oliati.", "A impressora está muito lenta porque a memória está cheia e precisa de ser limpa pelo técnico amanhã.", "De printer is erg traag omdat het geheugen vol is en het papier niet goed ligt in de lade.",
    "Drukarka świeci na czerwono, ponieważ papier jest zbyt wilgotny i rolka nie może go pobrać.", "Yazıcı çok yavaş çünkü hafızası dolu ve kağıt tepsiye düzgün yerleştirilmemiş durumda.", "프린터의 종이가 젖어 있어서 빨간 불이 켜져 있습니다. 종이를 교체하세요.",
    "الطابعة بطيئة جدا لأن الذاكرة ممتلئة والورق غير موضوع بشكل صحيح في الدرج.", "Skrivaren är mycket långsam eftersom minnet är fullt och papperet ligger fel i facket just nu.",
]  # fmt: skip


def language() -> Planted:
    draw = random.Random(10)
    faulty = [(ordinary(draw)[0], text if n else f"{text} {text}") for text in OTHER_LANGUAGES for n in range(2)]
    look_alikes = [(f"Translate to another language: {draw.choice(STEPS)}", text) for text in OTHER_LANGUAGES] + [
        ("Say it in German.", OTHER_LANGUAGES[0]), ("Name?", "Jürgen Müller-Lüdenscheidt"), ("Code", "```python\nfor i in range(10):\n    print(i)\n```"), ("City?", "São Paulo, Rio de Janeiro, Belo Horizonte"),
        ("Bon mot?", "The French say \"c'est la vie\" when something goes wrong and nothing can be done."), ("Dish", "Spaghetti alla puttanesca with olives, capers and a lot of garlic is my favorite."), ("JSON", '{"straße": "Hauptstraße 5", "ort": "Köln"}'),
        ("Numbers", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20"), ("Ids", "AB-1234-XY, CD-5678-ZW, EF-9012-UV, GH-3456-ST"), ("Sí?", "Sí"), ("Path", "/usr/local/lib/python3.11/site-packages/numpy"), ("Latin", "The motto is \"per aspera ad astra\", through hardship to the stars."),
        ("List countries", "Deutschland is what Germans call Germany, and Suomi is what Finns call Finland."), ("Drugs", "ibuprofen, paracetamol, amoxicillin, metformin, atorvastatin"), ("Welcome", "¡Hola! Welcome to our restaurant, we are glad that you found us today."),
    ]  # fmt: skip
    return pairs(700, look_alikes, faulty, 10)


def luhn_number(draw: random.Random, first: str, digits: int) -> str:
    body = first + "".join(str(draw.randrange(10)) for _ in range(digits - 1 - len(first)))
    doubled = sum(sum(divmod(2 * int(d), 10)) if n % 2 == 0 else int(d) for n, d in enumerate(reversed(body)))
    return body + str(-doubled % 10)


def iban(draw: random.Random, country: str, digits: int) -> str:
    body = "".join(str(draw.randrange(10)) for _ in range(digits))
    check = 98 - int(body + str(int(country[0], 36)) + str(int(country[1], 36)) + "00") % 97
    return f"{country}{check:02d}{body}"


def secret(draw: random.Random, length: int) -> str:
    return "".join(draw.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789") for _ in range(length - 2)) + "7q"


def pii() -> Planted:
    draw = random.Random(11)
    number = lambda count: "".join(str(draw.randrange(10)) for _ in range(count))  # noqa: E731
    forms: list[Callable[[], str]] = [
        lambda: f"{draw.choice(['ana', 'j.smith', 'chidi_k', 'info'])}{draw.randint(1, 99)}@{draw.choice(['gmail.com', 'web.de', 'mail.acme.co.uk', 'orange.fr'])}", lambda: f"(415) 7{number(2)}-{number(4)}", lambda: f"212-8{number(2)}-{number(4)}",
        lambda: f"+1 646 3{number(2)} {number(4)}", lambda: f"+49 30 {number(7)}", lambda: f"+44 20 7{number(3)} {number(4)}", lambda: f"call 030 / {number(4)} {number(3)}", lambda: f"phone: 0171 {number(7)}", lambda: f"Tel. 01 4{number(1)} {number(2)} {number(2)} {number(2)}",
        lambda: f"303.4{number(2)}.{number(4)}", lambda: luhn_number(draw, "4539", 16), lambda: " ".join(textwrap_four(luhn_number(draw, "5425", 16))), lambda: luhn_number(draw, "3782", 15), lambda: iban(draw, "DE", 18), lambda: " ".join(textwrap_four(iban(draw, "FR", 23))),
        lambda: f"{draw.randint(100, 665)}-{draw.randint(10, 99)}-{draw.randint(1000, 9999)}", lambda: "AKIA" + secret(draw, 40).upper()[:16], lambda: "ghp_" + secret(draw, 36), lambda: "sk-proj-" + secret(draw, 40), lambda: "hf_" + secret(draw, 34), lambda: "AIza" + secret(draw, 35),
        lambda: "-----BEGIN RSA PRIVATE KEY-----\nMIIEow", lambda: "api_key = '" + secret(draw, 32) + "'", lambda: "xoxb-" + number(12) + "-" + secret(draw, 16), lambda: "reach me on 4155" + number(6),
    ]  # fmt: skip
    faulty = []
    for form in forms:
        for side in range(4):
            prompt, answer = ordinary(draw)
            faulty.append((f"{prompt} Here it is: {form()}", answer) if side == 0 else (prompt, f"{answer} Write this down: {form()} and keep it."))
    look_alikes = [
        ("ISBN?", "The ISBN is 978-3-16-148410-0."), ("When?", "On 2021-03-15 at 12:30:45, or 15.03.2021."), ("IP", "The server is 192.168.100.25, port 8080."), ("Order", "Your order 4155550132 is on its way."), ("Pi", "Pi is 3.14159265358979323846."),
        ("Example", "Write to ana@example.com or bob@mail.example.org."), ("Film", "Call (212) 555-0123 now."), ("Zip", "It is in Springfield, IL 62701-4132."), ("Version", "Install version 10.4.18-2 of it."), ("Population", "The city has 1,234,567 people and 12 345 678 trees."),
        ("Card", "The number 4539 1488 0343 6468 fails the test."), ("Test card", "Use 4242 4242 4242 4242 for tests."), ("Key", "Set OPENAI_API_KEY=sk-your-key-goes-here-please"), ("Key2", "The example key is AKIAIOSFODNN7EXAMPLE."), ("Decorator", "Use @property and @staticmethod, not @foo."),
        ("Git", "git clone git@github.com:acme/tool.git"), ("Hash", "The commit is 9fceb02d0ae598e95dc970b74767f19372d61af8."), ("Twitter", "Follow @acme_support there."), ("GPS", "It is at 48.858370, 2.294481."), ("Serial", "Part number 123-456-78 fits."), ("Range", "Read pages 100-250 and 1914-1918."),
        ("UUID", "The id is 123e4567-e89b-12d3-a456-426614174000."), ("Salary", "It pays $120,000-150,000 a year."), ("Phone", "A phone with 128 GB and 6.1 inches costs 799 dollars."), ("Sum", "12 + 30 = 42 and 1000000 * 3 = 3000000."), ("Time", "Open 09:00-17:00, Mon-Fri."), ("Row", "1 2 3 4 5 6 7 8 9 10 11 12"),
        ("sklearn", "from sklearn.linear_model import LogisticRegression"), ("Token", "A token is a piece of a word; key = value."), ("Years", "Between 1990 2000 2010 2020 it grew."), ("Bond", "DE00123456781234567890 is not valid."),
    ]  # fmt: skip
    set_ = pairs(450, look_alikes * 2, faulty, 11)
    return Planted(set_.rows, set_.faulty, set_.look_alikes)


def textwrap_four(text: str) -> list[str]:
    return [text[start : start + 4] for start in range(0, len(text), 4)]


def json_answers() -> Planted:
    draw = random.Random(12)
    real = address_rows(500)
    breaks: list[Callable[[str], str]] = [
        lambda t: t[:-1], lambda t: t.replace('"', "'"), lambda t: t[:-1] + ",}", lambda t: "Here it is: " + t, lambda t: t.replace('": ', '" ', 1), lambda t: t[: len(t) // 2], lambda t: t + "}", lambda t: t.replace("}", ', "a": NaN}'),
        lambda t: t.replace("{", "{city: ", 1), lambda t: t + "\nI hope this helps!", lambda t: "```json\n" + t[:-2] + "\n```", lambda t: t.replace("}", ', "ok": True}'), lambda t: t + "\n" + t, lambda t: t.replace('{"', '{"a": "line\nbreak", "', 1), lambda t: "Sorry",
    ]  # fmt: skip

    def answered(one: Conversation, answer: str) -> Conversation:
        return Conversation((*one.prompt, Turn("assistant", answer)), one.source)

    faulty = [
        answered(one, draw.choice(breaks)(one.answer) if n >= len(breaks) else breaks[n](one.answer)) for n, one in enumerate(address_rows(75, 500))
    ]
    look_alikes = [
        answered(one, form)
        for one, form in zip(
            address_rows(60, 600),
            ["[]", "{}", '["a", "b"]', '```json\n{"a": 1}\n```', '{\n  "a": {"b": [1, 2, {"c": null}]}\n}', '{"text": "He said \\"no\\", {really}"}', '{"emoji": "🎉", "n": -1.5e10}', ' {"a": 1} \n', '{"a": "\\u00e9"}', "```\n[1, 2]\n```"] * 6,
            strict=True,
        )
    ]  # fmt: skip
    return planted(real, look_alikes, faulty, 12)


GOOD_CODE = [
    "def add(a, b):\n    return a + b\n", "import math\n\nprint(math.sqrt(2))\n", "class Point:\n    def __init__(self, x: int) -> None:\n        self.x = x\n", "for n in range(10):\n    if n % 2 == 0:\n        print(n)\n",
    "numbers = [n ** 2 for n in range(5)]\nprint(sum(numbers))\n", "with open('a.txt') as file:\n    text = file.read()\n", "try:\n    x = int('3')\nexcept ValueError as error:\n    print(error)\n", "name = 'Ana'\nprint(f'Hello {name}!')\n",
    "async def fetch(url):\n    return await get(url)\n", "match point:\n    case (0, y):\n        print(y)\n", "def f(*args, key=None, **rest):\n    yield from args\n", "x = {\n    'a': [1, 2],\n    'b': (3,),\n}\n",
]  # fmt: skip
GOOD_SQL = [
    "SELECT name, city FROM people WHERE age > 30 ORDER BY name;", "INSERT INTO people (name, age) VALUES ('Ana', 31);", "UPDATE people SET age = age + 1 WHERE id = 7;", "DELETE FROM people WHERE city IS NULL;", "SELECT city, COUNT(*) AS n FROM people GROUP BY city HAVING COUNT(*) > 2;",
    "CREATE TABLE pets (id INT PRIMARY KEY, name VARCHAR(20) NOT NULL);", "SELECT p.name, o.total FROM people p LEFT JOIN orders o ON p.id = o.person_id;", "WITH big AS (SELECT * FROM orders WHERE total > 100) SELECT * FROM big LIMIT 5;", "SELECT TOP 10 * FROM people;", "SELECT `name` FROM `people`;",
]  # fmt: skip


def code_answers() -> Planted:
    draw = random.Random(13)
    break_python: list[Callable[[str], str]] = [
        lambda c: c.replace("(", "", 1), lambda c: c.replace(":\n", "\n", 1), lambda c: c + "print('done'", lambda c: c + "x = = 3\n", lambda c: c + "  y = 2\n    z = 3\n", lambda c: c + "print 'python two'\n", lambda c: c.rstrip("\n") + ")\n", lambda c: c + "if x:\nprint(x)\n",
        lambda c: c + "else:\n    pass\n", lambda c: c + "s = 'unfinished\n", lambda c: "<your imports>\n" + c, lambda c: c + "def broken(:\n    pass\n",
    ]  # fmt: skip
    broken_sql = [
        "SELECT name, FROM people;", "SELEC name FROM people;", "SELECT name FROM WHERE age > 3;", "SELECT name FROM people WHERE;", "SELECT name FROM people ORDER name BY;",
        "SELECT name FROM people GROUP city;", "INSERT INTO people VALUES (1, 2;", "SELECT name FROM people WHERE age > > 3;", "SELECT COUNT(* FROM people;", "UPDATE people age = 3 WHERE id = 1;",
        "DELETE people FROM WHERE id=3;", "SELECT name FROM people WHERE name = 'Ana;", "SELECT name FROM people JOIN ON a = b;", "SELECT name FROM people LIMIT;",
        "SELECT * FROM people WHERE id IN (1, 2", "SELECT name FROM people WHERE age BETWEEN 3 OR 5;", "SELECT CASE WHEN a THEN b FROM t;",
    ]  # fmt: skip

    def fenced(tag: str, code: str) -> str:
        return f"Here is how it is done.\n\n```{tag}\n{code.rstrip()}\n```\n" + draw.choice(CLOSES)

    faulty = []
    for n in range(60):
        broken = break_python[n % len(break_python)](draw.choice(GOOD_CODE[:8]))
        try:
            compile(broken, "x", "exec")
        except SyntaxError:
            faulty.append(("Write it in Python.", fenced(draw.choice(["python", "py", "Python"]), broken) if n % 3 else "import os\n" + broken))
    faulty += [("Write the SQL query.", fenced("sql", broken) if n % 2 else broken) for n, broken in enumerate(broken_sql * 2)]
    sound = [("Write it in Python.", fenced("python", draw.choice(GOOD_CODE))) for _ in range(80)] + [
        ("SQL please", fenced("sql", draw.choice(GOOD_SQL))) for _ in range(80)
    ]
    look_alikes = [
        ("Session?", "```python\n>>> 1 +\n... 2\n3\n```"), ("Notebook", "```python\n%matplotlib inline\n!pip install x\n```"), ("Bash", "```bash\nfor f in *; do echo $f; done\n```"), ("Output", "```\nx = = 3\n```"), ("Rust", "```rust\nfn main() { let x = 3; }\n```"), ("Indented", "1. Do this:\n   ```python\n   x = 1\n   if x:\n       print(x)\n   ```\n"),
        ("Dots", "```python\ndef f():\n    ...\n```"), ("Prose", "import duties are high, and\nfrom here to there it is far."), ("Select", "Select the second page and press reset."), ("Create", "Create a table with two columns and fill it in."), ("Top", "```sql\nSELECT * FROM a WHERE b ILIKE '%x%' AND c::int > 3;\n```"), ("Two", "```sql\nSELECT 1; SELECT 2;\n```"),
        ("Update", "Update the app, then set the clock."), ("Types", "```python\ntype(x)\nprint(x)\n```"), ("Escape", "```python\nprint('\\d')\n```"), ("Comment", "```python\n# nothing here\n```"), ("Walrus", "```python\nif (n := 3) > 2:\n    print(n)\n```"), ("With", "With kind regards, Ana"), ("Lambda", "```python\nf = lambda x: x\n```"),
    ]  # fmt: skip
    base = pairs(250, [*sound, *look_alikes, *look_alikes], faulty, 13)
    return Planted(base.rows, base.faulty, 2 * len(look_alikes))


def arithmetic() -> Planted:
    draw = random.Random(14)

    def sums(wrong: bool) -> str:
        a, b, c, off = draw.randint(2, 99), draw.randint(2, 99), draw.randint(2, 20), draw.choice([1, 2, 10, 100, 7]) * wrong
        return draw.choice([
            f"{a} + {b} = {a + b + off}", f"{a * b} - {b} = {a * b - b + off}", f"{a} * {b} = {a * b + off}", f"{a} x {b} = {a * b - off}", f"{a * c} / {c} = {a + off}", f"{a}×{b}={a * b + off}", f"${a}.50 + ${b}.25 = ${a + b + off}.75", f"{a},000 + {b},500 = {a + b + off},500",
            f"{a} + {b} + {c} = {a + b + c + off}", f"{a} + {b} * {c} = {a + b * c + off}", f"({a} + {b}) * {c} = {(a + b) * c + off}", f"<<{a}*{b}={a * b + off}>>{a * b + off}", f"{c}^2 = {c * c + off}", f"50% * {2 * a} = {a + off}", f"{a * b} ÷ {b} = {a + off}", f"{a} − {b} = {a - b + off}",
        ])  # fmt: skip

    def told(equation: str) -> Pair:
        prompt, answer = ordinary(draw)
        return prompt, draw.choice(
            [
                f"So the result is {equation}.",
                f"{answer} That makes {equation}, as you can see.",
                f"First we compute:\n{equation}\nand then we are done.",
                f"{equation} boxes in all.",
            ]
        )

    faulty = [told(sums(True)) for _ in range(110)]
    sound = [told(sums(False)) for _ in range(150)]
    look_alikes = [
        ("Solve", "10x + 5 = 25, so x = 2."), ("Third", "1 / 3 = 0.33 and 2 / 3 = 0.67, 10 / 3 = 3.3333"), ("Modulo", "17 + 8 = 1 (mod 24)."), ("Binary", "1 + 1 = 10 in binary."), ("Wrong?", "It is not true that 2 + 2 = 5."), ("Code", "if a + 1 == 3: x = 5 - y = 2"), ("Discount", "100 - 20% = 80 dollars."), ("Division", "17 / 5 = 3 remainder 2"), ("Fractions", "1/2 + 1/3 = 5/6"),
        ("Chain", "2 + 3 = 5 and 5 + 1 = 6."), ("Units", "5 km + 3000 m = 8 km."), ("Date", "Version 2020-10-05 = 3 builds."), ("Ratio", "The ratio is 4:2 = 2:1."), ("Powers", "2^3^2 = 512 and 2**10 = 1,024"), ("Negative", "-3 + 5 = 2 and 4 * -2 = -8"), ("Scientific", "3 * 10^8 = 300,000,000"), ("Rounded", "22 / 7 = 3.14 and 1000 / 7 = 143"), ("Percent", "15% * 80 = 12"), ("Squares", "3² + 4² = 25"),
        ("Function", "f(2) + 1 = 7 if f(x) = 3x."), ("Vectors", "(1, 2) + (3, 4) = (4, 6)"), ("Mistake", "A common mistake is to think 1/2 + 1/2 = 2/4."), ("Factorial", "2 * 3 = 3!"), ("Chemistry", "2 H2 + O2 = 2 H2O"), ("Time", "9:30 + 1:15 = 10:45"), ("Roots", "5 + √16 = 9 and 2 * 3 = 6"), ("Decimal", "0.1 + 0.2 = 0.3"), ("Longer", "8 - 3 - 2 = 3, 24 / 4 / 2 = 3"), ("Unknown", "3 + x = 7, 12 - 5y = 2"),
        ("Brackets", "2(3 + 4) = 14"), ("Sine", "sin 30 + 1 = 1.5"), ("Letters", "a1 + 2 = b3 - 1 = c"), ("Half", "7 / 2 = 3.5"), ("Average", "(3 + 4 + 5) / 3 = 4"), ("Cents", "$1.99 * 3 = $5.97"),
    ]  # fmt: skip
    base = pairs(250, [*sound, *look_alikes, *look_alikes], faulty, 14)
    return Planted(base.rows, base.faulty, 2 * len(look_alikes))


SETS: dict[str, Callable[[], Planted]] = {
    made.__name__: made
    for made in (empty_or_tiny_answer, cut_answer, repetition, refusals, special_tokens, mojibake, control_characters, html, roles, language, pii,
                 json_answers, code_answers, arithmetic)
}  # fmt: skip


def measure(check: str) -> Measured:
    """Run one check on its planted set."""
    made = SETS[check]()
    others = [name for name in CHECKS if name != check]
    assert isinstance(CHECKS[check], RowCheck)
    finding = next(found for found in run_checks(made.rows, Given(CheckSettings(off=others)), lambda done, what: None) if found.check == check)
    found = set(finding.places)
    right = len(found & made.faulty)
    return Measured(
        check,
        len(made.rows),
        len(made.faulty),
        made.look_alikes,
        right / len(made.faulty),
        right / len(found) if found else 0.0,
        [shown(made.rows[place]) for place in sorted(made.faulty - found)],
        [shown(made.rows[place]) for place in sorted(found - made.faulty)],
    )


def shown(one: Conversation) -> str:
    return " | ".join(f"{turn.role}: {turn.content[-160:]!r}" for turn in one.turns[-2:])
