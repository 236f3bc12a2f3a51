"""Dates as people write them in six languages, to ISO 8601: "Dienstag, 3. Mräz 1987" is 1987-03-03.

Example k of a split is a pure function of the seed and k, and no day is in two splits. A numeric date has the day
first, unless it is ISO's or marked as American. Typing errors affect letters only, one per word, and never bring a
month within two errors of another month's name, so that each writing has one meaning.
"""

import datetime
import functools
import random

FIRST, DAYS = datetime.date(1900, 1, 1), 73_049  # to the end of 2099
SIZES = {"train": 60_000, "validation": 1_000, "test": 2_000}
ERRORS = 0.2  # share of the names that are mistyped
LONGEST = 31  # characters of a date, which the end makes a power of two

# Months, weekdays from Monday, and ways to write: {w}eekday, {d}ay, {m}onth, {y}ear.
LANGUAGES = {
    "english": (
        "January February March April May June July August September October November December",
        "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
        ("{d} {m} {y}", "{m} {d}, {y}", "{w}, {d} {m} {y}", "{w}, {m} {d}, {y}", "the {d} of {m} {y}"),
    ),
    "german": (
        "Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
        "Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag",
        ("{d}. {m} {y}", "{w}, {d}. {m} {y}", "am {d}. {m} {y}"),
    ),
    "french": (
        "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
        "lundi mardi mercredi jeudi vendredi samedi dimanche",
        ("{d} {m} {y}", "le {d} {m} {y}", "{w} {d} {m} {y}"),
    ),
    "spanish": (
        "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
        "lunes martes miércoles jueves viernes sábado domingo",
        ("{d} de {m} de {y}", "el {d} de {m} de {y}", "{w}, {d} de {m} de {y}"),
    ),
    "italian": (
        "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre",
        "lunedì martedì mercoledì giovedì venerdì sabato domenica",
        ("{d} {m} {y}", "il {d} {m} {y}", "{w} {d} {m} {y}"),
    ),
    "dutch": (
        "januari februari maart april mei juni juli augustus september oktober november december",
        "maandag dinsdag woensdag donderdag vrijdag zaterdag zondag",
        ("{d} {m} {y}", "{w} {d} {m} {y}", "op {d} {m} {y}"),
    ),
}
NUMERIC = (
    *("{d}.{n}.{y}", "{d}/{n}/{y}", "{d}-{n}-{y}", "{d:02}.{n:02}.{y}", "{d:02}/{n:02}/{y}"),
    *("{y}-{n:02}-{d:02}", "{y}/{n:02}/{d:02}", "US {n}/{d}/{y}", "US {n:02}/{d:02}/{y}"),
)


def example(seed: int, split: str, k: int) -> tuple[str, str]:
    """The k-th date of a split, as written and in ISO 8601."""
    rng = random.Random(f"{seed} {split} {k}")
    day = rng.randrange(DAYS)
    while split_of(day) != split:
        day = rng.randrange(DAYS)
    date = FIRST + datetime.timedelta(days=day)
    text = written(date, rng)
    while len(text) > LONGEST:
        text = written(date, rng)
    return text, date.isoformat()


@functools.cache
def split_of(day: int) -> str:
    """The split that a day belongs to, its number counted from `FIRST`: of ten days one validates and one tests."""
    return {0: "validation", 1: "test"}.get(random.Random(day).randrange(10), "train")


def written(date: datetime.date, rng: random.Random) -> str:
    """A date as somebody may write it."""
    if rng.random() < 0.3:
        return rng.choice(NUMERIC).format(d=date.day, n=date.month, y=date.year)
    months, weekdays, patterns = LANGUAGES[rng.choice(list(LANGUAGES))]
    month, weekday = months.split()[date.month - 1], weekdays.split()[date.weekday()]
    short = month[:3]
    if rng.random() < 0.2 and len(month) > 5 and begun(short) == {date.month}:
        month = short + rng.choice(("", "."))
    elif rng.random() < ERRORS:
        slips = [slip for slip in slips_of(month) if near(slip) == {date.month}]
        month = rng.choice(slips or [month])
    if rng.random() < ERRORS:
        weekday = rng.choice(slips_of(weekday))
    text = rng.choice(patterns).format(w=weekday, d=date.day, m=month, y=date.year)
    return rng.choice((text, text, text.lower()))


@functools.cache
def slips_of(word: str) -> list[str]:
    """The word with a letter left out, a letter twice, or two neighbours the other way round."""
    places = range(len(word))
    dropped = [word[:i] + word[i + 1 :] for i in places]
    doubled = [word[:i] + word[i] + word[i:] for i in places]
    turned = [word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in places[:-1]]
    return sorted({*dropped, *doubled, *turned} - {word})


@functools.cache
def near(word: str) -> set[int]:
    """The months with a name that is, with a letter left out of either or of both, this word."""
    return {month for form in _shorter(word) for month in _months_by_form().get(form, ())}


@functools.cache
def begun(word: str) -> set[int]:
    """The months with a name that begins with this word."""
    return {month for name, month in _months() if name.startswith(word.lower())}


def _months() -> list[tuple[str, int]]:
    names = [months.lower().split() for months, _, _ in LANGUAGES.values()]
    return [(name, month) for row in names for month, name in enumerate(row, start=1)]


@functools.cache
def _months_by_form() -> dict[str, set[int]]:
    forms: dict[str, set[int]] = {}
    for name, month in _months():
        for form in _shorter(name):
            forms.setdefault(form, set()).add(month)
    return forms


def _shorter(word: str) -> set[str]:
    word = word.lower()
    return {word, *(word[:i] + word[i + 1 :] for i in range(len(word)))}
