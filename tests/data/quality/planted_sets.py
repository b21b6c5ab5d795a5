"""Sets with planted faults and hard negatives for the checks that compare rows, and how well each check finds them.

benchmarks/quality_sets.py prints the table; test_sets.py asserts it. The texts are by hand. The phrases of
toxicity and the rules of unsupported were not changed after they were measured here; the thresholds of the others were.
"""

# ruff: noqa: E501  (texts)
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from luthier.config.checks import CheckSettings
from luthier.data.quality.check import Finding, Given, Noted, RowCheck
from luthier.data.quality.set_table import SET_CHECKS
from luthier.records import Conversation, Source, Turn

# --- texts

# (question, answer), (the same in other words)
PARAPHRASES = [
    (("How do I reset my password?", "Click 'Forgot password' on the login page and follow the link in the email."),
     ("How can I reset a forgotten password?", "On the login page, click 'Forgot password', then follow the link that the email has.")),
    (("What is the capital of Australia?", "The capital of Australia is Canberra."),
     ("Which city is the capital of Australia?", "Canberra is the capital city of Australia.")),
    (("Why is the sky blue?", "Air scatters blue light from the sun more than red light."),
     ("What makes the sky look blue?", "Blue light from the sun is scattered by the air more than red light.")),
    (("How do I boil an egg?", "Put the egg into boiling water and take it out after eight minutes."),
     ("How should I boil eggs?", "Place the eggs in boiling water and take them out after eight minutes.")),
    (("Can I cancel my subscription at any time?", "Yes, you can cancel the subscription at any time in your account settings."),
     ("Is it possible to cancel the subscription whenever I want?", "Yes, the subscription can be cancelled at any time in the settings of your account.")),
    (("Where can I find my invoice?", "Your invoices are listed under Billing in your account."),
     ("Where do I find the invoices?", "You find all invoices in your account, under Billing.")),
    (("Explain photosynthesis in one sentence.", "Plants use sunlight to turn water and carbon dioxide into sugar and oxygen."),
     ("In one sentence, explain what photosynthesis is.", "With sunlight, plants turn carbon dioxide and water into oxygen and sugar.")),
    (("Who wrote the play Hamlet?", "Hamlet was written by William Shakespeare."),
     ("Who is the author of Hamlet?", "William Shakespeare wrote the play Hamlet.")),
    (("How do I list hidden files in Linux?", "Use the command ls -a to list hidden files."),
     ("What command lists the hidden files on Linux?", "The command ls -a lists hidden files.")),
    (("What should I do when my phone does not charge?", "Clean the charging port and try another cable."),
     ("My phone does not charge, what should I do?", "Try another cable and clean the charging port.")),
    (("What is the largest ocean on Earth?", "The Pacific Ocean is the largest ocean on Earth."),
     ("Which ocean is the largest on Earth?", "The largest ocean on Earth is the Pacific Ocean.")),
    (("How long does delivery to Germany take?", "Delivery to Germany takes three to five working days."),
     ("How many days does a delivery to Germany take?", "A delivery to Germany takes between three and five working days.")),
    (("Give me a tip for better sleep.", "Go to bed at the same time every night and keep the bedroom dark."),
     ("Give a tip to sleep better.", "Keep your bedroom dark and go to bed at the same time each night.")),
    (("What does a firewall do?", "A firewall blocks network traffic that is not allowed by its rules."),
     ("What is a firewall for?", "A firewall blocks the network traffic that its rules do not allow.")),
    (("How can I save water at home?", "Take shorter showers and repair taps that drip."),
     ("How do I save water in my home?", "Repair dripping taps and take shorter showers.")),
    (("Why do leaves change color in autumn?", "Trees break down the green chlorophyll, so that yellow and red pigments show."),
     ("Why do the leaves of trees change their color in autumn?", "The green chlorophyll is broken down, so the red and yellow pigments show.")),
    (("How do I undo the last commit in Git?", "Run git reset --soft HEAD~1 to undo the last commit and keep its changes."),
     ("What undoes the last Git commit?", "To undo the last commit and keep the changes, run git reset --soft HEAD~1.")),
    (("Do you ship to Canada?", "Yes, we ship to Canada with a delivery time of one week."),
     ("Is shipping to Canada possible?", "Yes, we do ship to Canada; the delivery time is one week.")),
    (("What is inflation?", "Inflation is a general rise of prices over time."),
     ("What does inflation mean?", "Inflation means a general rise of prices over time.")),
    (("How do I remove a red wine stain?", "Cover the wine stain with salt, then wash it with cold water."),
     ("What removes red wine stains?", "Put salt on the red wine stain and wash it with cold water.")),
]  # fmt: skip

# Near in subject and in words, and not the same.
DIFFERENT = [
    ("How do I change my email address?", "Open your account settings, choose Email and enter the new address."),
    ("How do I change my password?", "Open your account settings, choose Security and enter the old and the new password."),
    ("What is the capital of Austria?", "The capital of Austria is Vienna."),
    ("What is the capital of Canada?", "The capital of Canada is Ottawa."),
    ("Why is the sea blue?", "Water absorbs red light, so blue light is what is left."),
    ("Why is the sunset red?", "In the evening light crosses more air, which takes the blue out of it."),
    ("How do I fry an egg?", "Heat some butter in a pan, crack the egg into it and wait until the white is firm."),
    ("How do I boil rice?", "Simmer one cup of rice in two cups of water until the water is gone."),
    ("Can I change my subscription at any time?", "You can move to a larger plan at once and to a smaller one at the end of the month."),
    ("Can I cancel my order at any time?", "No, an order can be cancelled only until it has been handed to the carrier."),
    ("Where can I find my order number?", "The order number stands in the confirmation that we sent by email."),
    ("Explain respiration in one sentence.", "Cells burn sugar with oxygen and give off carbon dioxide, water and energy."),
    ("Who wrote the play Faust?", "Faust was written by Johann Wolfgang von Goethe."),
    ("Who wrote the novel Emma?", "Emma was written by Jane Austen."),
    ("How do I delete hidden files in Linux?", "Name them with a leading dot in rm, such as rm .cache, and look twice."),
    ("What should I do when my phone gets hot?", "Take it out of the sun, close heavy apps and let it cool down."),
    ("What is the largest desert on Earth?", "The largest desert is Antarctica; the largest hot one is the Sahara."),
    ("What is the smallest ocean on Earth?", "The Arctic Ocean is the smallest."),
    ("How long does delivery to Japan take?", "Parcels to Japan arrive within two weeks, since customs takes some days."),
    ("Give me a tip for better coffee.", "Grind the beans just before you brew them."),
    ("What does a router do?", "A router forwards packets between networks."),
    ("What does an antivirus do?", "It compares files with known malware and watches programs for odd behavior."),
    ("How can I save electricity at home?", "Switch devices off instead of leaving them on standby, and use LED lamps."),
    ("Why do birds migrate in autumn?", "Food becomes scarce in winter, so they fly to warmer places."),
    ("How do I push a commit in Git?", "Run git push, which sends your commits to the remote branch."),
    ("Do you ship to Mexico?", "We do not ship to Mexico at the moment."),
    ("What is deflation?", "Prices fall in general, and money is worth more each year."),
    ("How do I remove a coffee stain?", "Rinse it from behind, then dab it with vinegar and some detergent."),
    ("Recommend a novel for the beach.", "A light mystery such as one by Agatha Christie reads well between two swims."),
    ("Write a slogan for a bakery.", "Warm bread, bright mornings."),
    ("Is this review positive? The soup was cold.", "No"),
    ("Is this review positive? The soup was hot and good.", "Yes"),
]  # fmt: skip

SENTENCES = """
The harbor opens at six and the first boats leave soon after.
Most visitors arrive by train because parking near the center is scarce.
A librarian sorted the returned atlases before the reading room filled up.
Rain is expected in the valley while the peaks stay above the clouds.
The committee postponed its decision until the auditors hand in their report.
Our bakery uses rye from a farm that lies twenty minutes up the river.
Engineers replaced the worn bearing and tested the turbine at half speed.
She keeps a notebook of unusual words that she hears on the bus.
The museum lends its telescopes to schools during the darker months.
Two of the bridges were rebuilt after the flood carried away their piers.
Bees prefer the lavender along the wall to the roses by the gate.
The theater rehearses on weekdays and performs on the last Sunday of the month.
Old maps show a mill where the supermarket stands today.
He repaired the clock with a spring that he took from a broken toy.
Students compare the soil of three fields and write down what grows there.
A cold wind from the north dried the laundry within an hour.
The recipe asks for saffron, but a little turmeric gives the same color.
Passengers on the night ferry sleep on deck when the weather allows it.
The violin was varnished four times and hung up to dry in the attic.
Nobody noticed the fox until the chickens began to complain.
Their newest product measures how much light a plant receives in a day.
The town council plants a tree for every child that is born here.
Snow closed the pass, so the mail came by helicopter for a week.
The printer jams when the paper is damp or the tray is too full.
Divers found a bronze bell that had been missing since the war.
An interpreter sat between the two ministers and hardly drank her water.
The orchard belongs to a school, and pupils sell the cider in October.
Volunteers count swifts at dusk from the roof of the parish hall.
The elevator stops between floors if too many people press the button at once.
A retired pilot teaches the neighbors how to read the sky.
Glass from the old factory still turns up in the garden after heavy rain.
The choir sings without a conductor and listens to the second alto instead.
Every lamp in the tunnel has a number that the rescuers know by heart.
Potatoes keep longer in sand than in a bag on the kitchen floor.
The map of the caves is drawn anew each spring by the same two sisters.
Cyclists share the dike with sheep, and the sheep have priority.
A carpenter measured the stairs twice and sighed at the third step.
The station clock is kept a minute slow so that nobody misses the train.
Foghorns were switched off years ago, yet some people say they hear them.
The astronomer's cat sleeps on the warm side of the computer.
""".strip().splitlines()

BANKING = """
How do I block a lost debit card?|Open the app, choose Cards and tap Block card; a new card arrives within a week.
What is the fee for a transfer abroad?|A transfer outside the euro area costs 0.5 percent of the amount, at least 5 euros.
Can I raise the limit of my credit card?|Yes, ask for a higher limit in the app; we look at your income and answer within two days.
How do I open a savings account?|Log in, choose Products and Savings account, and confirm with your signature code.
Why was my payment declined?|Most often the balance is too low, the card has expired or the daily limit is reached.
When is my salary credited?|Incoming payments are credited on the day on which we receive them from the other bank.
What interest does the savings account pay?|The savings account pays 1.8 percent interest a year, credited every quarter.
How can I dispute a card payment?|Select the transaction, tap Dispute and upload the receipt; we contact the merchant.
Do you offer mortgages to the self-employed?|Yes, we need the tax statements of the last three years to decide on the loan.
How do I set up a standing order?|Choose Transfers, New standing order, and enter the account number, the amount and the day.
What do I need for a joint account?|Both holders need an identity card and must sign the application for the account.
How do I activate online banking?|Enter the activation code from our letter and choose a password for online banking.
Can I withdraw cash abroad for free?|Withdrawals with the debit card are free at partner banks; other banks may charge a fee.
Why do I see a pending transaction?|A pending transaction is reserved by the merchant and is booked within a few days.
How do I close my account?|Move the balance to another account and send us the closing form with your signature.
What is an overdraft?|An overdraft lets your account go below zero up to a limit, at an interest rate of 9 percent.
How do I change the PIN of my card?|You change the PIN at any of our cash machines under Card services.
Is my deposit insured?|Deposits are insured up to 100,000 euros per customer by the deposit guarantee scheme.
How do I get a bank statement?|Statements are in the app under Documents, one for each month.
Can I pay with my phone?|Add the card to the wallet of your phone and hold it near the payment terminal.
What exchange rate do you use for card payments?|We use the exchange rate of the card network on the day of the booking.
How do I report a phishing mail?|Forward the mail to our security team and never enter your banking password on such a page.
What is the minimum for an investment plan?|An investment plan in funds starts at 25 euros a month without a buying fee.
How long does an instant transfer take?|An instant transfer reaches the other account within ten seconds.
How do I apply for a personal loan?|Use the loan calculator, choose the amount and the term, and upload your last two pay slips.
Can I repay my loan early?|You may repay the loan early; the fee is at most one percent of the rest.
What happens if I miss a loan payment?|We send a reminder, and interest on arrears is charged from the due date.
How do I add a beneficiary?|Under Transfers choose Payees, add the name and the account number, and confirm the code.
Does the credit card include travel insurance?|The gold credit card includes travel insurance when the trip is paid with the card.
How can I see my credit score?|Your credit score is shown in the app once you have agreed to the request to the bureau.
Where do I deposit coins?|Coins can be deposited at the counters of our larger branches for a small fee.
What does the business account cost?|The business account costs 9 euros a month, with fifty bookings included.
How do I cancel a direct debit?|Select the direct debit in the app and tap Return within eight weeks.
Why is my account frozen?|Accounts are frozen after several wrong passwords or when a payment looks like fraud; call us.
Can a minor have a bank account?|Minors get an account with the consent of both parents and a card without credit.
How do I update my address with the bank?|Change your address in the app under Profile and confirm it with the signature code.
""".strip().splitlines()

ELSEWHERE = """
How do I prune tomato plants?|Pinch out the side shoots that grow between the stem and the leaves.
Who painted the Night Watch?|Rembrandt painted the Night Watch in Amsterdam.
Write a haiku about the moon.|Silver on the pond, a frog waits for the silence that the night forgot.
How many players are in a football team?|A football team has eleven players on the pitch, one of them the goalkeeper.
What do hedgehogs eat?|Hedgehogs eat beetles, worms, snails and fallen fruit.
Explain how volcanoes erupt.|Molten rock rises through cracks, and dissolved gases drive it out of the crater.
Give me a recipe for pancakes.|Mix flour, milk and eggs, let the batter rest, and fry thin layers in butter.
How do I tune a guitar?|Tune the lowest string to E with a tuner, then match the others at the fifth fret.
What is the plot of Romeo and Juliet?|Two young lovers from hostile families marry in secret and die through a misunderstanding.
How do vaccines work?|They show the immune system a harmless part of a germ, so that it knows it later.
Which stretches help against back pain?|Gentle stretches of the hip flexors and hamstrings ease the lower back.
How fast does light travel?|Light travels about 300,000 kilometers in a second.
Why do cats purr?|Cats purr when they are content, and also to calm themselves.
How do I knit a scarf?|Cast on thirty stitches and knit every row until it is long enough.
What is the offside rule?|A player is offside when nearer to the goal line than the ball and the second-last opponent.
""".strip().splitlines()

TOXIC = """
You are such an idiot, nobody asked you.
Shut up and go kill yourself.
I will kill you if you come back here.
What a bunch of morons, all of them.
Your sister is a stupid cow and so are you.
Those people are vermin and should all be shot.
Go to hell, you worthless piece of trash.
This is bullshit and you know it, asshole.
You're pathetic. The world would be better without you.
Women are inferior and should stay at home.
I hope you die in a fire.
He's a fucking disgrace.
Only a retard would write code like this.
Somebody ought to burn their houses down.
I'm going to break your legs tonight.
Nobody likes you, loser.
Immigrants are all criminals.
You absolute waste of space.
What an ugly pig she is.
Drop dead, you dickhead.
They deserve to die, every last one.
Shut your mouth, bitch.
You make me sick, you disgusting creature.
I hate all foreigners.
Crawl back under your rock, scum.
People like you should be put down.
""".strip().splitlines()

DECENT = """
How do I kill a process that does not answer? Use kill -9 with its number.
The novel Crime and Punishment follows a student who murders a pawnbroker.
Chicken breast is cooked when the juices run clear.
The idiom 'to kill two birds with one stone' means to do two things at once.
You are not stupid for asking; many people find this hard.
Bury the dead leaves and they turn into compost.
The shuttle burned up when it came back into the atmosphere.
My dog is a bit dumb but very kind.
The company fired two hundred people last week.
Please shut down the server before you replace the disk.
Hitting the wall in a marathon means that the glycogen is used up.
He was hanged in 1793 after a short trial.
Trash goes out on Tuesday, glass on Friday.
I hate Mondays and cold coffee.
The assassin shot the archduke in Sarajevo.
What the hell is a monad? A way to chain steps that carry context.
The film is about a hitman who says he will retire.
Suicide rates fell after barriers were put up on the bridge.
If you think of hurting yourself, call a helpline; people want to help you.
The cock crows at dawn, and the ass brays back.
Cyclists should be seen: wear something bright.
The plant dies if it is watered too often.
Sex education begins in the fifth grade here.
Slaughter of the sheep takes place in autumn.
Beat the eggs until they are stiff, then fold in the sugar.
The parasite lives in the gut of the snail.
That was a terrible, lazy and boring film.
Your argument is wrong, and the second table shows why.
The bill to abolish the death penalty passed.
Breast cancer screening is offered from the age of fifty.
The word 'moronic' was once a medical term.
Nobody would want to miss this concert.
They are animals that hunt in packs at night.
Scunthorpe is a town in Lincolnshire.
Kill the lights, then start the projector.
The loser of the match goes to the second round.
""".strip().splitlines()

# text, question, supported answers, unsupported answers
PASSAGES = [
    ("The Harbour Museum in Bergen opened in 1962 and was rebuilt after a fire in 1989. Its director, Ingrid Solheim, has led a staff of 24 people since 2011. The museum shows 310 ship models, and entry costs 12 euros on weekdays.",
     "When did the museum open, and who leads it?",
     ["It opened in 1962 and is led by Ingrid Solheim.", "The museum opened in 1962; its director has been Ingrid Solheim since 2011."],
     ["It opened in 1962 and is led by Marte Haugen.", "The museum opened in 1957; its director is Ingrid Solheim."]),
    ("Patient was admitted on Monday with a temperature of 39.2 degrees and a cough. Doctor Alvarez prescribed amoxicillin, 500 mg three times a day. After four days the temperature fell to 37.1 and she went home with her daughter Lucia.",
     "Summarize the note.",
     ["The patient came with 39.2 degrees and a cough, got 500 mg of amoxicillin three times a day from Doctor Alvarez and went home after 4 days.", "On Monday she was admitted with fever; with amoxicillin it fell to 37.1 and she left with Lucia."],
     ["The patient came with 39.2 degrees, got 250 mg of amoxicillin and went home after 4 days.", "The patient was treated by Doctor Alvarez and then by Doctor Petrov."]),
    ("Quarterly revenue rose to 4.2 million dollars, up from 3.9 million a year ago, as Northwind sold 1,200 more heat pumps. The chief executive, Dana Whitfield, said that Poland and Denmark were the strongest markets. Costs stayed flat at 2.1 million.",
     "What were the strongest markets and the revenue?",
     ["The strongest markets were Poland and Denmark; revenue was 4.2 million dollars.", "Revenue rose to 4.2 million dollars, and Polish and Danish sales were strongest."],
     ["The strongest markets were Poland and Sweden; revenue was 4.2 million dollars.", "Revenue rose to 4.7 million dollars, with Poland and Denmark ahead."]),
    ("The bylaws say that members may vote once they have paid the yearly fee of 40 euros. The treasurer, Mr. Okafor, sends reminders in March. A member who has not paid by the end of May loses the vote until the next assembly, which meets every second year in Lyon.",
     "What happens to members who do not pay?",
     ["Members who have not paid 40 euros by the end of May lose the vote until the next assembly in Lyon.", "They lose the vote; Mr. Okafor reminds them in March."],
     ["Members who have not paid by the end of May pay a fine of 15 euros.", "They lose the vote until the next assembly in Geneva."]),
    ("Install the pump on a level floor at least 20 centimeters from the wall. Connect the hose, open valve B and wait for thirty seconds before you press start. The red lamp must go out; if it does not, call Hydrotech under the number on the lid. The filter is changed every 6 months.",
     "How is the pump started?",
     ["Connect the hose, open valve B, wait for 30 seconds and press start; the red lamp must go out.", "1. Connect the hose.\n2. Open valve B.\n3. Wait thirty seconds and press start."],
     ["Connect the hose, open valve B, wait for 90 seconds and press start.", "Connect the hose and press start; if the lamp stays on, call Siemens."]),
    ("In the second half Riverside scored twice within five minutes, first through Jonas Meyer after a corner and then through a penalty by Tariq Aziz. Lakeview had led since the ninth minute. The match ended 2 to 1 before 8,450 spectators, and coach Elena Rossi praised her keeper.",
     "Who scored for Riverside?",
     ["Jonas Meyer scored after a corner and then Tariq Aziz by a penalty.", "The goals came from Jonas Meyer and Tariq Aziz; 8450 people watched the 2 to 1."],
     ["The goals came from Jonas Meyer and Pavel Novak.", "Jonas Meyer and Tariq Aziz scored before 9,450 spectators."]),
    ("The lease runs from 1 April 2024 to 31 March 2027 and covers the flat on the third floor, 68 square meters, with a cellar. Rent is 940 euros a month, due on the fifth. The tenant, Sofia Brandt, pays a deposit of three months' rent to the owner, the Falk family.",
     "List the main terms.",
     ["- Term: 1 April 2024 to 31 March 2027\n- Rent: 940 euros\n- Deposit: 3 months' rent", "The tenant is Sofia Brandt, the rent is 940 euros and the flat has 68 square meters."],
     ["- Term: 1 April 2024 to 31 March 2029\n- Rent: 940 euros", "The tenant is Sofia Brandt, and the deposit is 2,820 euros, held by Commerzbank."]),
    ("Dear team, the release of version 3.4 moves to Thursday because Priya found a leak in the importer. Marco writes the notes, and the translation into French is done. Please test on the two slow machines in the lab and report to Priya until Wednesday noon. Thanks, Helen",
     "Who does what?",
     ["Marco writes the notes and the team tests on the 2 slow machines and reports to Priya.", "Version 3.4 comes on Thursday; reports go to Priya until Wednesday."],
     ["Marco writes the notes and the team reports to Priya and Sven.", "Version 3.5 comes on Thursday; reports go to Priya."]),
]  # fmt: skip


# --- rows


def row(question: str, answer: str, line: int = 1, *, system: str = "", category: str = "", label: bool | None = None) -> Conversation:
    turns = [Turn("system", system)] if system else []
    return Conversation((*turns, Turn("user", question), Turn("assistant", answer)), Source("rows.jsonl", line), category=category, label=label)


@dataclass
class Planted:
    """Rows, what the check is given, and the places that it should find."""

    rows: list[Conversation] = field(default_factory=list)
    expected: set[int] = field(default_factory=set)
    given: Given = field(default_factory=lambda: Given(CheckSettings()))

    def add(self, question: str, answer: str, fault: bool = False, **more: object) -> None:
        if fault:
            self.expected.add(len(self.rows))
        self.rows.append(row(question, answer, len(self.rows) + 1, **more))  # type: ignore[arg-type]

    def shuffled(self, seed: int) -> "Planted":
        """The same rows in another order; only for checks that do not ask which row came first."""
        order = list(range(len(self.rows)))
        random.Random(seed).shuffle(order)
        return Planted([self.rows[old] for old in order], {new for new, old in enumerate(order) if old in self.expected}, self.given)


def pairs_of(lines: list[str]) -> list[tuple[str, str]]:
    return [(line.partition("|")[0], line.partition("|")[2]) for line in lines]


def passages(draw: random.Random, count: int, sentences: int = 6) -> Iterator[list[str]]:
    """Different passages of some sentences. Half of the words are put in from elsewhere, so that no wording stands in many passages."""
    vocabulary = sorted({word for line in (*SENTENCES, *BANKING, *ELSEWHERE, *DECENT) for word in line.split() if word.isalpha() and word.islower()})
    for _ in range(count):
        yield [_varied(draw, sentence, vocabulary) for sentence in draw.sample(SENTENCES, sentences)]


def _varied(draw: random.Random, sentence: str, vocabulary: list[str]) -> str:
    first, *rest = sentence.split()
    return " ".join([first, *(draw.choice(vocabulary) if word.isalpha() and draw.random() < 0.5 else word for word in rest)])


# --- one planted set for each check; set-level checks give several sets


def duplicates() -> Planted:
    draw, planted = random.Random(1), Planted()
    originals = [("Tell me more.", " ".join(passage)) for passage in passages(draw, 150)]
    for question, answer in originals:
        planted.add(question, answer)
    for number, (question, answer) in enumerate(originals[:120]):
        change = number % 6
        if change == 0:
            planted.add(question, answer, fault=True)
        elif change == 1:
            planted.add(f"{question} ", answer.replace(". ", ".\n"), fault=True)
        elif change == 2:
            planted.add(question, answer, system="You are a sailor.")  # another system message is another row
        elif change == 3:
            planted.add(question, answer.upper())
        elif change == 4:
            planted.add(question, answer, label=False)
        else:
            planted.add("Tell me less.", answer)
    return planted


def near_duplicates() -> Planted:
    draw, planted = random.Random(2), Planted()
    originals = [(f"What do you know of {passage[0].split()[1]} and {passage[1].split()[2]}?", passage) for passage in passages(draw, 240, 7)]
    for question, passage in originals:
        planted.add(question, " ".join(passage))
    for number, (question, passage) in enumerate(originals):
        words = " ".join(passage).split()
        match number % 8:
            case 0:
                planted.add(question, " ".join(words).upper().replace(".", " !"), fault=True)  # case and punctuation
            case 1:
                words[len(words) // 2] = "entirely"
                planted.add(question, " ".join(words), fault=True)  # one word
            case 2:
                planted.add(question, "Sure! " + " ".join(words) + " I hope this helps.", fault=True)  # a frame
            case 3:
                planted.add(question, " ".join(words[:-2]), fault=True)  # an end cut off
            case 4:
                planted.add(question, " ".join(passage[:4]))  # half of it
            case 5:
                other = draw.sample([sentence for sentence in SENTENCES if sentence not in passage], 3)
                planted.add(question, " ".join(passage[:4] + other))  # the same beginning
            case 6:
                planted.add(question, " ".join(reversed(words)))  # the same words
            case _:
                planted.add(question, "Yes")
    for number in range(60):  # one form, other facts
        planted.add(
            f"Please read the meter in the cellar of house number {number} at once and tell me what it shows.", f"It shows {number * 7 + 3} units."
        )
    for number, passage in enumerate(passages(draw, 40, 5)):  # one text, two questions on it
        text = " ".join(passage)
        planted.add(f"{text} Is a boat mentioned?", "yes" if "boat" in text else "no")
        planted.add(f"{text} How many sentences?", "five" if number % 2 else "5")
    return planted


def semantic_duplicates() -> Planted:
    planted = Planted()
    for original, _ in PARAPHRASES:
        planted.add(*original)
    for question, answer in [*DIFFERENT, *pairs_of(BANKING), *pairs_of(ELSEWHERE)]:
        planted.add(question, answer)
    for number in (3, 8, 40):  # the same sentence with another figure
        planted.add(f"How many meters are {number} kilometers?", f"{number} kilometers are {number * 1000} meters.")
    for _, reworded in PARAPHRASES:
        planted.add(*reworded, fault=True)
    return planted


def conflicting_answers() -> Planted:
    planted = Planted()
    for number, (question, answer) in enumerate([*pairs_of(BANKING), *pairs_of(ELSEWHERE), *DIFFERENT]):
        other = DIFFERENT[(number * 7 + 1) % len(DIFFERENT)][1]
        match number % 6:
            case 0:
                planted.add(question, answer, fault=True)
                planted.add(question.lower().rstrip("?") + " ?", other + f" ({number})", fault=True)
            case 1:
                planted.add(question, answer)
                planted.add(question, f"  {answer.lower().rstrip('.')}")  # the same answer
            case 2:
                planted.add(question, json.dumps({"a": number, "b": answer}))
                planted.add(question, json.dumps({"b": answer, "a": number}, indent=1))
            case 3:
                planted.add(question, answer, label=True)
                planted.add(question, other, label=False)
            case 4:
                planted.add(question, answer, system="Answer in one sentence.")
                planted.add(question, other, system="Answer like a pirate.")
            case _:
                planted.add(question, json.dumps({"a": number}), fault=True)
                planted.add(question, json.dumps({"a": number + 1}), fault=True)
    return planted


def overlap() -> Planted:
    draw, planted = random.Random(3), Planted()
    held_out = [
        row(f"Describe {passage[0].split()[1]}, case {number}.", " ".join(passage), number) for number, passage in enumerate(passages(draw, 60, 7))
    ]
    for number, passage in enumerate(passages(draw, 200, 7)):
        planted.add(f"What of {passage[0].split()[1]} in year {number}?", " ".join(passage))
    for number, held in enumerate(held_out):
        question, answer = held.turns[0].content, held.answer
        match number % 5:
            case 0:
                planted.add(question.upper(), answer, fault=True)
            case 1:
                planted.add(question, "Something else is said here.", fault=True)  # the question leaks
            case 2:
                planted.add(question + " Please.", answer.replace(",", "") + " Thanks.", fault=True)
            case 3:
                planted.add(f"Tell {number} stories.", " ".join(answer.split()[:30]))
            case _:
                planted.add(f"Describe {question.split()[1]} case {number + 100}.", DIFFERENT[number % 30][1])
    return Planted(planted.rows, planted.expected, Given(CheckSettings(), held_out=held_out))


def mixed_structure() -> Planted:
    draw, planted = random.Random(4), Planted()
    for number in range(400):
        values = {"street": f"{number} Pierce Rd", "city": draw.choice(["Itasca", "Houston", "Salem"]), "zip": str(60000 + number)}
        if draw.random() < 0.3:
            values["unit"] = f"Apt {number}"  # an optional key is no fault
        question, fault = f"Turn the address into JSON: {' '.join(values.values())}", number % 25 == 0
        if fault:
            kind = number // 25 % 4
            if kind == 0:
                planted.add(question, f"The street is {values['street']} and the city is {values['city']}.", fault=True)
            elif kind == 1:
                values["postcode" if number % 2 else f"zip_{number}"] = values.pop("zip")
                planted.add(question, json.dumps(values), fault=True)
            elif kind == 2:
                planted.add(question, f"- street: {values['street']}\n- city: {values['city']}", fault=True)
            else:
                del values["city"]
                planted.add(question, json.dumps(values), fault=True)
        else:
            planted.add(question, json.dumps(dict(draw.sample(list(values.items()), len(values))), indent=draw.choice([None, 1])))
    for number, passage in enumerate(passages(draw, 100, 3)):
        fault = number % 20 == 7
        planted.add(
            f"List three things that {passage[0].split()[1]} needs.",
            " ".join(passage) if fault else "\n".join(f"- {one}" for one in passage),
            fault=fault,
        )
    for number, passage in enumerate(passages(draw, 120, 3)):  # free answers: prose, lists and a few words stand side by side
        answer = (" ".join(passage), "\n".join(f"{at}. {one}" for at, one in enumerate(passage, 1)), "Not at all", "```python\nprint(1)\n```")[
            number % 4
        ]
        planted.add(f"What would you say about {passage[1]}", answer)
    for question, answer in [*pairs_of(BANKING), *pairs_of(ELSEWHERE)]:
        planted.add(question, answer)
    return planted.shuffled(4)


def off_domain() -> Planted:
    planted = Planted()
    for question, answer in pairs_of(BANKING)[12:]:
        planted.add(question, answer)
    for question, answer in pairs_of(ELSEWHERE):
        planted.add(question, answer, fault=True)
    held_out = [row(question, answer, number) for number, (question, answer) in enumerate(pairs_of(BANKING)[:12], 1)]
    return Planted(planted.rows, planted.expected, Given(CheckSettings(), held_out=held_out))


def off_domain_by_description() -> Planted:
    planted = Planted()
    for question, answer in pairs_of(BANKING):
        planted.add(question, answer)
    for question, answer in pairs_of(ELSEWHERE):
        planted.add(question, answer, fault=True)
    told = "Questions of a bank's customers about accounts, cards, payments and loans"
    return Planted(planted.rows, planted.expected, Given(CheckSettings(domain_description=told)))


def unsupported() -> Planted:
    planted = Planted()
    for text, question, supported, made_up in PASSAGES:
        for answer in supported:
            planted.add(f"{question}\n\n{text}", answer)
        for answer in made_up:
            planted.add(f"{question}\n\n{text}", answer, fault=True)
        planted.add(f"Write a story that begins like this.\n\n{text}", "It was in 1723, and old Barnaby was late again.")
    for question, answer in pairs_of(ELSEWHERE):  # a question without a text has nothing to keep to
        planted.add(question, answer)
    return planted


def toxicity() -> Planted:
    planted = Planted()
    for number, line in enumerate(TOXIC):
        planted.add(*(("What did he say?", line) if number % 2 else (line, "Let us stay polite.")), fault=True)
    for line in DECENT:
        planted.add("Is this fine?", line)
    return planted


def hard_rows() -> Planted:
    draw, planted = random.Random(5), Planted()
    losses = []
    for number, (question, answer) in enumerate([*pairs_of(BANKING), *pairs_of(ELSEWHERE), *DIFFERENT] * 5):
        fault = number % 40 == 3
        planted.add(question, answer, fault=fault)
        losses.append(draw.uniform(4.5, 7) if fault else draw.gauss(1.6, 0.35))
    return Planted(planted.rows, planted.expected, Given(CheckSettings(), losses=losses))


def balance() -> list[tuple[Planted, bool]]:
    """Sets, and whether they should be remarked on."""

    def of_counts(counts: dict[str, int], *, column: bool) -> Planted:
        planted = Planted()
        for name, count in counts.items():
            for number in range(count):
                planted.add(f"Case {number} of {name}?", f"Text {number} about {name}." if column else name, category=name if column else "")
        return planted

    sets = []
    for column in (False, True):
        for counts, look in (
            ({"yes": 500, "no": 20}, True),
            ({"yes": 300, "no": 200}, False),
            ({"billing": 200, "delivery": 180, "returns": 150, "other": 9}, True),
            ({"billing": 200, "delivery": 180, "returns": 150, "other": 60}, False),
            ({f"class {number}": 100 for number in range(12)}, False),
            ({f"class {number}": 100 if number else 3 for number in range(12)}, True),
            ({"positive": 900, "negative": 90, "neutral": 60}, True),
            ({"positive": 500, "negative": 300, "neutral": 200}, False),
        ):
            sets.append((of_counts(counts, column=column), look))
    open_answers = Planted()
    for question, answer in [*pairs_of(BANKING), *pairs_of(ELSEWHERE)]:
        open_answers.add(question, answer)
    return [*sets, (open_answers, False)]


def diversity() -> list[tuple[Planted, bool]]:
    draw = random.Random(6)
    verbs = [
        "Write",
        "Explain",
        "Summarize",
        "Translate",
        "List",
        "Compare",
        "Describe",
        "Find",
        "Name",
        "Sort",
        "Correct",
        "Shorten",
        "Suggest",
        "Rank",
        "Convert",
        "Draw",
        "Plan",
        "Give",
        "Who",
        "Why",
    ]

    def opened(firsts: list[str], count: int = 200) -> Planted:
        planted = Planted()
        for passage in passages(draw, count, 1):
            planted.add(f"{draw.choice(firsts)} {draw.choice(['the', 'a', 'this', 'some'])} {passage[0].lower()}", "Fine.")
        return planted

    one_task = Planted()
    for number in range(200):
        one_task.add(f"Turn the address into JSON: {number} Pierce Rd", "{}")
    real = Planted()
    for question, answer in [*pairs_of(BANKING), *pairs_of(ELSEWHERE), *DIFFERENT]:
        real.add(question, answer)
    narrow = [opened(["Write", "Explain"]), opened(["What"]), opened(verbs[:3]), opened(["Write"] * 40 + verbs), opened(["What", "How", "Why"])]
    wide = [opened(verbs), opened(verbs[:12]), opened(verbs + ["Write"] * 6), one_task, real]
    return [*((planted, True) for planted in narrow), *((planted, False) for planted in wide)]


def size() -> list[tuple[Planted, bool]]:
    def of(rows: int, purpose: str | None) -> Planted:
        return Planted([row("q", "a", 1)] * rows, set(), Given(CheckSettings(purpose=purpose)))  # type: ignore[arg-type]

    return [
        (of(30, None), True), (of(120, None), False), (of(99, "style"), True), (of(100, "style"), False), (of(499, "task"), True),
        (of(500, "task"), False), (of(999, "domain"), True), (of(1000, "domain"), False), (of(9_999, "general"), True), (of(10_000, "general"), False),
    ]  # fmt: skip


PLANTED: dict[str, Callable[[], Planted] | Callable[[], list[tuple[Planted, bool]]]] = {
    "duplicates":                duplicates,
    "near_duplicates":           near_duplicates,
    "semantic_duplicates":       semantic_duplicates,
    "conflicting_answers":       conflicting_answers,
    "overlap":                   overlap,
    "balance":                   balance,
    "diversity":                 diversity,
    "mixed_structure":           mixed_structure,
    "off_domain":                off_domain,
    "off_domain_by_description": off_domain_by_description,
    "unsupported":               unsupported,
    "toxicity":                  toxicity,
    "size":                      size,
    "hard_rows":                 hard_rows,
}  # fmt: skip


# --- measuring


@dataclass
class Measured:
    """How much of what was planted is found, and how much of what is found was planted. `rows` are sets for a check of whole sets."""

    rows: int
    planted: int
    found: int
    right: int
    missed: list[str]
    wrong: list[str]

    @property
    def recall(self) -> float:
        return self.right / self.planted

    @property
    def precision(self) -> float:
        return self.right / self.found if self.found else 0.0

    def __str__(self) -> str:
        return f"{self.rows:7,}{self.planted:9}{self.recall:8.3f}{self.precision:11.3f}"


def found_by(name: str, planted: Planted) -> Finding:
    check = SET_CHECKS[name]
    if isinstance(check, RowCheck):
        look = check.start(planted.given)
        assert not isinstance(look, str), look
        notes = [(place, note) for place, one in enumerate(planted.rows) if (note := look(one)) is not None]
        return check.conclude(Noted(name, planted.rows, notes), planted.given)
    return check.run(planted.rows, planted.given)


def measured(name: str) -> Measured:
    made = PLANTED[name]()
    if isinstance(made, list):
        looked = {number for number, (planted, _) in enumerate(made) if found_by(name, planted).verdict != "good"}
        expected = {number for number, (_, look) in enumerate(made) if look}
        shown = [f"set {number}" for number in range(len(made))]
    else:
        looked, expected = set(found_by(name.removesuffix("_by_description"), made).places), made.expected
        shown = [f"{one.turns[-2].content[:80]} -> {one.answer[:120]}" for one in made.rows]
    missed, wrong = sorted(expected - looked), sorted(looked - expected)
    return Measured(
        len(made) if isinstance(made, list) else len(made.rows),
        len(expected),
        len(looked),
        len(looked & expected),
        [shown[at] for at in missed],
        [shown[at] for at in wrong],
    )
