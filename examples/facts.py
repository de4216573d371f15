"""What the demo model is to know: tables of facts, and the sentences that say them.

A `Relation` belongs to a topic and says how the fields of a row of the topic's table are put into
words. `{field}` stands for the row's value; "a" becomes "an", and the first letter large, when a
sentence is filled.
"""

from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True)
class Relation:
    """Ways to say one fact.

    statements: sentences that are understood alone.
    followers: sentences about the subject of the sentence before.
    questions: what they leave out is the answer.
    """

    statements: tuple[str, ...]
    followers: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Topic:
    """rows: the facts. subject: the field that passages are about. openings: how passages begin."""

    rows: list[dict[str, str]]
    relations: tuple[Relation, ...]
    subject: str | None = None
    openings: tuple[str, ...] = field(default=())


def table(fields: str, lines: str) -> list[dict[str, str]]:
    """Rows of a table in which "-" is nothing and "_" a space."""
    names = fields.split()
    rows = [dict(zip(names, line.split(), strict=True)) for line in lines.strip().splitlines()]
    return [
        {name: value.replace("_", " ") for name, value in row.items() if value != "-"}
        for row in rows
    ]


COUNTRIES = Topic(
    table(
        "country capital continent language river mountain",
        """
        France Paris Europe French Seine -
        Germany Berlin Europe German Spree Zugspitze
        Italy Rome Europe Italian Tiber -
        Spain Madrid Europe Spanish Manzanares Teide
        Portugal Lisbon Europe Portuguese Tagus Pico
        England London Europe English Thames -
        Poland Warsaw Europe Polish Vistula Rysy
        Greece Athens Europe Greek - Olympus
        Austria Vienna Europe German Danube Grossglockner
        Hungary Budapest Europe Hungarian Danube -
        Sweden Stockholm Europe Swedish - Kebnekaise
        Norway Oslo Europe Norwegian - -
        Denmark Copenhagen Europe Danish - -
        Finland Helsinki Europe Finnish - Halti
        Iceland Reykjavik Europe Icelandic - -
        Bulgaria Sofia Europe Bulgarian - Musala
        Romania Bucharest Europe Romanian - Moldoveanu
        Croatia Zagreb Europe Croatian Sava Dinara
        Slovenia Ljubljana Europe Slovenian - Triglav
        Ukraine Kyiv Europe Ukrainian Dnieper Hoverla
        Egypt Cairo Africa Arabic Nile -
        Morocco Rabat Africa Arabic - Toubkal
        Tunisia Tunis Africa Arabic - -
        Kenya Nairobi Africa Swahili - -
        Tanzania Dodoma Africa Swahili - Kilimanjaro
        Angola Luanda Africa Portuguese - -
        Japan Tokyo Asia Japanese Sumida Fuji
        China Beijing Asia Chinese - -
        Thailand Bangkok Asia Thai - -
        Vietnam Hanoi Asia Vietnamese - -
        Mongolia Ulaanbaatar Asia Mongolian Tuul -
        Iran Tehran Asia Persian - Damavand
        Iraq Baghdad Asia Arabic Tigris -
        Nepal Kathmandu Asia Nepali - Everest
        Brazil Brasilia South_America Portuguese - -
        Peru Lima South_America Spanish - -
        Chile Santiago South_America Spanish Mapocho -
        Colombia Bogota South_America Spanish - -
        Ecuador Quito South_America Spanish - Chimborazo
        Uruguay Montevideo South_America Spanish - -
        Cuba Havana North_America Spanish - -
        """,
    ),
    subject="country",
    openings=(
        "{country} is a country.",
        "This is about {country}.",
        "Let us talk about {country}.",
        "Here is something about {country}.",
        "{country} is worth a journey.",
    ),
    relations=(
        Relation(
            (
                "The capital of {country} is {capital}.",
                "{capital} is the capital of {country}.",
                "{country} has the capital {capital}.",
                "The capital city of {country} is {capital}.",
                "{capital} is the capital city of {country}.",
                "In {country} the capital is called {capital}.",
                "The government of {country} sits in {capital}.",
                "The city {capital} serves as capital of {country}.",
                "If you visit the capital of {country}, you are in {capital}.",
            ),
            (
                "Its capital is {capital}.",
                "The capital is {capital}.",
                "{capital} is its capital.",
                "Its capital city is called {capital}.",
                "Its government sits in {capital}.",
            ),
            (
                "What is the capital of {country}?",
                "Which city is the capital of {country}?",
                "Name the capital of {country}.",
                "Tell me the capital of {country}.",
                "Do you know the capital of {country}?",
                "What is the capital city of {country} called?",
                "Which country has the capital {capital}?",
                "{capital} is the capital of which country?",
                "Of which country is {capital} the capital?",
            ),
        ),
        Relation(
            (
                "{country} is a country in {continent}.",
                "{country} is in {continent}.",
                "{country} lies in {continent}.",
                "The country {country} belongs to {continent}.",
                "{country} is one of the countries of {continent}.",
                "You find {country} on the map of {continent}.",
                "The continent of {country} is {continent}.",
            ),
            (
                "It is in {continent}.",
                "It lies in {continent}.",
                "The country is part of {continent}.",
            ),
            (
                "Where is {country}?",
                "On which continent is {country}?",
                "Which continent does {country} belong to?",
                "In which part of the world does {country} lie?",
            ),
        ),
        Relation(
            (
                "People in {country} speak {language}.",
                "In {country} people speak {language}.",
                "The main language of {country} is {language}.",
                "{language} is spoken in {country}.",
                "{country} is a country where {language} is spoken.",
                "If you want to live in {country}, learn {language}.",
                "In the schools of {country} children read {language}.",
                "{language} is the main language of {country}.",
                "{language} is what people in {country} speak.",
            ),
            (
                "People there speak {language}.",
                "Its main language is {language}.",
                "{language} is spoken there.",
            ),
            (
                "Which language is spoken in {country}?",
                "What do people in {country} speak?",
                "What is the main language of {country}?",
                "Name the language of {country}.",
                "Which language do I need in {country}?",
            ),
        ),
        Relation(
            (
                "The river {river} flows through {capital}.",
                "{capital} lies on the river {river}.",
                "In {capital} bridges cross the river {river}.",
                "The city {capital} was built on the river {river}.",
                "The river of {capital} is the {river}.",
            ),
            (),
            (
                "Which river flows through {capital}?",
                "On which river does {capital} lie?",
                "What is the river of {capital} called?",
            ),
        ),
        Relation(
            (
                "The highest mountain of {country} is {mountain}.",
                "{mountain} is the highest mountain of {country}.",
                "No mountain of {country} is higher than {mountain}.",
                "Climbers who come to {country} climb {mountain}.",
                "In {country} the highest mountain is called {mountain}.",
            ),
            ("Its highest mountain is {mountain}.", "{mountain} is its highest mountain."),
            (
                "What is the highest mountain of {country}?",
                "Which mountain is the highest of {country}?",
                "In which country is {mountain} the highest mountain?",
            ),
        ),
        Relation(
            (
                "{capital} is the capital of {country} and the river {river} flows through it.",
                "The river {river} flows through {capital}, the capital of {country}.",
                "The capital of {country} is {capital} and lies on the river {river}.",
            )
        ),
        Relation(
            (
                "{country} is a country in {continent} and its capital is {capital}.",
                "{country}, whose capital is {capital}, lies in {continent}.",
                "{capital} is a city in {country}, a country of {continent}.",
                "The capital of {country} is {capital} and the continent is {continent}.",
            )
        ),
        Relation(
            (
                "The capital of {country} is {capital} and people there speak {language}.",
                "In {capital}, the capital of {country}, people speak {language}.",
                "{capital} is the capital of {country} and the language there is {language}.",
                "{country} lies in {continent} and the language there is {language}.",
            )
        ),
    ),
)

ANIMALS = Topic(
    table(
        "animal young legs food home sound",
        """
        dog puppy four meat kennel barks
        cat kitten four mice basket meows
        cow calf four grass barn moos
        horse foal four hay stable neighs
        sheep lamb four grass meadow bleats
        pig piglet four acorns sty grunts
        goat kid four leaves - -
        hen chick two grain coop clucks
        duck duckling two snails pond quacks
        goose gosling two grass - honks
        swan cygnet two - lake -
        owl owlet two mice tree hoots
        eagle eaglet two fish nest -
        bear cub four honey den growls
        lion cub four meat savanna roars
        fox cub four mice den -
        deer fawn four leaves forest -
        frog tadpole four insects pond croaks
        panda cub four bamboo forest -
        rabbit - four clover burrow -
        squirrel - four nuts tree -
        bee - six nectar hive buzzes
        butterfly - six nectar meadow -
        spider - eight insects web -
        kangaroo joey - grass - -
        wolf - four meat den howls
        """,
    ),
    subject="animal",
    openings=(
        "A {animal} is an animal.",
        "This is about the {animal}.",
        "Look at the {animal}.",
        "Here comes a {animal}.",
    ),
    relations=(
        Relation(
            (
                "A young {animal} is called a {young}.",
                "A {young} is a young {animal}.",
                "The young of a {animal} is a {young}.",
                "The baby of a {animal} is called a {young}.",
                "A {young} grows up to be a {animal}.",
                "When a {young} grows up, it is a {animal}.",
            ),
            ("Its young is called a {young}.", "Its baby is a {young}."),
            (
                "What is a young {animal} called?",
                "What do you call the young of a {animal}?",
                "What is the baby of a {animal}?",
                "Which animal does a {young} become?",
                "Whose young is a {young}?",
            ),
        ),
        Relation(
            (
                "A {animal} has {legs} legs.",
                "A {animal} walks on {legs} legs.",
                "There are {legs} legs on a {animal}.",
                "The {animal} is an animal with {legs} legs.",
                "Every {animal} stands on {legs} legs.",
            ),
            (
                "It has {legs} legs.",
                "It walks on {legs} legs.",
                "The animal stands on {legs} legs.",
            ),
            (
                "How many legs has a {animal}?",
                "How many legs does a {animal} have?",
                "On how many legs does a {animal} walk?",
            ),
        ),
        Relation(
            (
                "A {animal} eats {food}.",
                "The {animal} feeds on {food}.",
                "The food of the {animal} is {food}.",
                "A {animal} likes to eat {food}.",
                "If a {animal} is hungry, it looks for {food}.",
                "You can give {food} to a {animal}.",
            ),
            ("It eats {food}.", "It feeds on {food}.", "Its food is {food}."),
            (
                "What does a {animal} eat?",
                "What is the food of the {animal}?",
                "What can I give to a hungry {animal}?",
            ),
        ),
        Relation(
            (
                "A {animal} lives in a {home}.",
                "The home of the {animal} is a {home}.",
                "You find the {animal} in a {home}.",
                "A {animal} sleeps in a {home}.",
                "The {animal} makes its home in a {home}.",
            ),
            ("It lives in a {home}.", "Its home is a {home}.", "It sleeps in a {home}."),
            (
                "Where does a {animal} live?",
                "What is the home of the {animal}?",
                "Where do I find the {animal}?",
            ),
        ),
        Relation(
            (
                "A {animal} {sound}.",
                "If it {sound}, it is a {animal}.",
                "The animal that {sound} is a {animal}.",
                "You can hear that the {animal} {sound}.",
                "Every {animal} {sound}.",
            ),
            ("It {sound}.",),
            (
                "Which animal {sound}?",
                "What does a {animal} sound like?",
                "How do I hear a {animal}?",
            ),
        ),
        Relation(
            (
                "A {animal} has {legs} legs and its young is called a {young}.",
                "The {animal} eats {food} and lives in a {home}.",
                "A {animal} {sound} and eats {food}.",
                "A {animal} lives in a {home} and has {legs} legs.",
            )
        ),
    ),
)

WORDS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
]
NUMBERS = Topic(
    [{"number": number, "next": after} for number, after in pairwise(WORDS)],
    (
        Relation(
            (
                "The number after {number} is {next}.",
                "{next} comes after {number}.",
                "{next} follows {number}.",
                "{number} comes before {next}.",
                "The number before {next} is {number}.",
                "Whoever counts says {number} and then {next}.",
                "{next} is one more than {number}.",
                "{number} is one less than {next}.",
                "{next} is the number after {number}.",
                "{number} is the number before {next}.",
            ),
            (),
            (
                "Which number comes after {number}?",
                "What follows {number}?",
                "What is one more than {number}?",
                "Which number comes before {next}?",
                "What is one less than {next}?",
            ),
        ),
    ),
)

SUMS = Topic(
    [
        {"a": WORDS[a - 1], "b": WORDS[b - 1], "sum": WORDS[a + b - 1]}
        for a in range(2, 6)
        for b in range(2, 6)
    ],
    (
        Relation(
            (
                "{a} plus {b} is {sum}.",
                "{a} and {b} make {sum}.",
                "The sum of {a} and {b} is {sum}.",
                "{sum} is the sum of {a} and {b}.",
                "If you add {a} and {b}, you get {sum}.",
                "{a} apples and {b} apples are {sum} apples.",
                "{sum} minus {a} is {b}.",
                "If you take {a} from {sum}, you have {b}.",
                "{sum} is {a} plus {b}.",
                "{sum} is what {a} and {b} make.",
                "{a} added to {b} is {sum}.",
            ),
            (),
            (
                "What is {a} plus {b}?",
                "How much is {a} and {b}?",
                "What is the sum of {a} and {b}?",
                "What is {sum} minus {a}?",
                "Add {a} and {b}.",
            ),
        ),
    ),
)

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "Monday"]
WEEK = Topic(
    [{"day": day, "next": after} for day, after in pairwise(DAYS)],
    (
        Relation(
            (
                "The day after {day} is {next}.",
                "The day before {next} is {day}.",
                "{next} is the day after {day}.",
                "{day} is the day before {next}.",
                "{day} is followed by {next}.",
                "If today is {day}, tomorrow is {next}.",
                "Today is {day} and tomorrow is {next}.",
                "Yesterday was {day} and today is {next}.",
                "After {day} we have {next}.",
                "{next} comes after {day}.",
                "{day} comes before {next}.",
            ),
            (),
            (
                "Which day comes after {day}?",
                "What day follows {day}?",
                "What day is tomorrow if today is {day}?",
                "Which day comes before {next}?",
                "What day was yesterday if today is {next}?",
            ),
        ),
    ),
)

MONTHS = Topic(
    [
        {**row, "next": after}
        for row, after in zip(
            table(
                "month place days",
                """
                January first 31
                February second -
                March third 31
                April fourth 30
                May fifth 31
                June sixth 30
                July seventh 31
                August eighth 31
                September ninth 30
                October tenth 31
                November eleventh 30
                December twelfth 31
                """,
            ),
            [
                "February",
                "March",
                "April",
                "May",
                "June",
                "July",
                "August",
                "September",
                "October",
                "November",
                "December",
                "January",
            ],
            strict=True,
        )
    ],
    subject="month",
    openings=("{month} is a month.", "This is about {month}.", "Let us talk about {month}."),
    relations=(
        Relation(
            (
                "{month} is the {place} month of the year.",
                "The {place} month of the year is {month}.",
                "In every year {month} is month number {place}.",
                "The year has {month} as its {place} month.",
            ),
            ("It is the {place} month of the year.", "It is the {place} of the twelve months."),
            (
                "Which month is the {place} of the year?",
                "What is the {place} month of the year?",
                "What place has {month} in the year?",
            ),
        ),
        Relation(
            (
                "The month after {month} is {next}.",
                "The month before {next} is {month}.",
                "{month} is followed by {next}.",
                "When {month} is over, {next} begins.",
                "{next} is the month after {month}.",
                "{month} is the month before {next}.",
            ),
            ("{next} comes after it.", "The next month is {next}."),
            (
                "Which month comes after {month}?",
                "What month follows {month}?",
                "Which month comes before {next}?",
                "Which month begins when {month} is over?",
            ),
        ),
        Relation(
            (
                "{month} has {days} days.",
                "There are {days} days in {month}.",
                "The month of {month} is {days} days long.",
                "It takes {days} days until {month} is over.",
            ),
            ("It has {days} days.", "It is {days} days long."),
            ("How many days has {month}?", "How many days are in {month}?", "How long is {month}?"),
        ),
    ),
)

UNITS = Topic(
    table(
        "unit count parts",
        """
        kilometre 1000 metres
        metre 100 centimetres
        centimetre 10 millimetres
        kilogram 1000 grams
        tonne 1000 kilograms
        litre 1000 millilitres
        minute 60 seconds
        hour 60 minutes
        day 24 hours
        week 7 days
        year 12 months
        decade 10 years
        century 100 years
        dollar 100 cents
        """,
    ),
    (
        Relation(
            (
                "A {unit} has {count} {parts}.",
                "A {unit} is {count} {parts}.",
                "There are {count} {parts} in a {unit}.",
                "{count} {parts} make a {unit}.",
                "{count} {parts} are as much as one {unit}.",
                "Every {unit} consists of {count} {parts}.",
                "You can divide a {unit} into {count} {parts}.",
            ),
            (),
            (
                "How many {parts} are in a {unit}?",
                "How many {parts} has a {unit}?",
                "How many {parts} make a {unit}?",
                "What do {count} {parts} make?",
            ),
        ),
    ),
)

COLOURS = Topic(
    table(
        "thing colour",
        """
        snow white
        milk white
        salt white
        a_swan white
        grass green
        a_cucumber green
        a_frog green
        a_leaf green
        blood red
        a_tomato red
        a_strawberry red
        a_cherry red
        coal black
        soot black
        a_raven black
        a_lemon yellow
        a_banana yellow
        the_sun yellow
        the_sky blue
        a_carrot orange
        a_pumpkin orange
        chocolate brown
        a_flamingo pink
        an_elephant grey
        """,
    ),
    (
        Relation(
            (
                "{thing} is {colour}.",
                "The colour of {thing} is {colour}.",
                "{thing} has the colour {colour}.",
                "Everyone can see that {thing} is {colour}.",
                "To paint {thing}, take {colour}.",
                "Something as {colour} as {thing} is very {colour}.",
            ),
            (),
            (
                "What colour is {thing}?",
                "Which colour has {thing}?",
                "What is the colour of {thing}?",
            ),
        ),
    ),
)

MIXTURES = Topic(
    [
        {"one": one, "other": other, "mixture": row["mixture"]}
        for row in table(
            "one other mixture",
            """
            blue yellow green
            red yellow orange
            red blue purple
            red white pink
            black white grey
            """,
        )
        for one, other in ((row["one"], row["other"]), (row["other"], row["one"]))
    ],
    (
        Relation(
            (
                "{one} and {other} make {mixture}.",
                "If you mix {one} and {other}, you get {mixture}.",
                "{one} mixed with {other} is {mixture}.",
                "A painter makes {mixture} from {one} and {other}.",
                "{mixture} is a mixture of {one} and {other}.",
                "{mixture} is what {one} and {other} make.",
                "{one} becomes {mixture} with {other}.",
                "To get {mixture}, mix {one} and {other}.",
            ),
            (),
            ("What do {one} and {other} make?", "What do I get if I mix {one} and {other}?"),
        ),
    ),
)

PAIRS = """hot cold, big small, young old, fast slow, high low, dark bright, full empty,
open closed, wet dry, hard soft, heavy light, rich poor, left right, early late, strong weak,
clean dirty, loud quiet, wide narrow, long short, good bad"""
OPPOSITES = Topic(
    [
        {"word": word, "opposite": opposite}
        for pair in PAIRS.split(",")
        for word, opposite in (pair.split(), pair.split()[::-1])
    ],
    (
        Relation(
            (
                "The opposite of {word} is {opposite}.",
                "{word} is the opposite of {opposite}.",
                "{word} and {opposite} are opposites.",
                "What is not {word} is {opposite}.",
                "The word {word} means the opposite of {opposite}.",
                "If it is not {word}, it is {opposite}.",
                "{word} is what {opposite} is not.",
                "{word} means the opposite of {opposite}.",
            ),
            (),
            (
                "What is the opposite of {word}?",
                "What is the contrary of {word}?",
                "Which word is the opposite of {word}?",
            ),
        ),
    ),
)

TOPICS = (COUNTRIES, ANIMALS, NUMBERS, SUMS, WEEK, MONTHS, UNITS, COLOURS, MIXTURES, OPPOSITES)
