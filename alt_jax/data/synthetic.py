"""A generated click log with real structure, for the demo and for tests that may not use real data.

A catalogue of items with titles, makers, genres and years; users with tastes that their demographics partly explain; an
exposure log in which popularity has a long tail, users mostly see what suits them, and new items keep appearing. The
title's words carry signal: an item's theme vector and much of its appeal are sums over its words, so a model that reads
the title knows something about an item that it has never seen.

The true logit of a click is a weighted sum of standardised parts (`SHARES` says how much of its variance each explains)
and the true probability is kept with each row, so the best result that any model could reach is known.
"""

import dataclasses
from typing import Final

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

Matrix = Float[np.ndarray, "..."]

# Every genre has a vocabulary of its own, the theme that most of its titles draw on.
THEMES: Final[dict[str, str]] = {
    "nautical": "harbor tide lighthouse anchor reef sailor current pearl storm drift salt shore captain lagoon "
    "voyage mast gull coral kelp dory fathom buoy",
    "space": "orbit comet nebula satellite rocket gravity lunar galaxy meteor probe signal eclipse stardust cosmos "
    "module horizon vacuum asteroid pulsar zenith airlock starship",
    "mystery": "detective alibi motive clue witness poison locked cipher shadow verdict suspect vanished ransom "
    "forger whisper informer blackmail footprint midnight hidden stranger inquest",
    "romance": "kiss letter promise wedding heart summer dance waltz longing ribbon rose valentine bride sweetheart "
    "tender embrace secret blush serenade darling locket engagement",
    "fantasy": "dragon sword wizard crown realm prophecy rune elf enchanted throne spell griffin oracle sorcerer "
    "relic goblin amulet phoenix quest citadel raven unicorn",
    "cooking": "kitchen recipe garlic butter oven spice bread pepper honey feast skillet pastry lemon noodle supper "
    "flavor market chef simmer basil crust pickle",
    "sports": "champion league goal sprint stadium coach marathon trophy racket pitch underdog rally referee relay "
    "summit slalom boxer penalty final team podium overtime",
    "history": "empire siege republic dynasty treaty revolution pharaoh legion medieval colony general parliament "
    "archive frontier monarch armistice bronze chronicle exile senate cavalry decree",
    "nature": "forest river meadow wolf owl mountain moss fern orchid glacier canyon heron autumn valley wildflower "
    "badger migration desert pine thunder tundra otter",
    "music": "melody rhythm jazz violin chorus ballad guitar symphony tempo vinyl encore drummer harmony lullaby "
    "cello anthem trumpet soprano echo octave fiddle blues",
}
NEUTRAL_WORDS: Final = (
    "great little last first new old lost silver golden blue red long quiet brave broken perfect simple complete "
    "another second modern empty bright distant hundred seven twelve north home story"
)
AGES: Final = ("under 18", "18-24", "25-34", "35-44", "45-54", "55+")
OCCUPATIONS: Final = (
    "student", "teacher", "engineer", "nurse", "artist", "clerk", "manager", "retired", "farmer", "driver", "lawyer",
    "scientist",
)  # fmt: skip
MAKER_SYLLABLES: Final = "bar cal dor fen gal hol jor kel lim mar nol pel ril sar tor ven wil yar zan bro"
MAKER_KINDS: Final = ("press", "studio", "house", "works")

# How much of the true logit's variance each part explains. They sum to 1.
SHARES: Final[dict[str, float]] = {
    "user": 0.18,  # how readily a user clicks at all
    "words": 0.20,  # appeal of the title's words
    "maker": 0.08,  # a maker's quality
    "genre": 0.03,
    "item": 0.04,  # an item's own quality, told by nothing but its clicks
    "theme taste": 0.31,  # the user's taste times the title's theme
    "genre taste": 0.07,
    "maker taste": 0.03,
    "year taste": 0.04,  # the old and the young differ about old and new items
    "fashion": 0.02,  # themes come and go
}

# A user's taste: how much of it gender, age, occupation and the person explain (relative).
TASTE_PARTS: Final = {"gender": 0.4, "age": 0.6, "occupation": 0.6, "person": 0.6}
POPULARITY_EXPONENT: Final = 0.75  # Zipf's law of items' popularity
ACTIVITY_EXPONENT: Final = 0.7  # and of users' activity
RANK_SHIFT: Final = 5.0  # flattens the head: ranks count from here
NEW_ITEMS: Final = 0.5  # share of the items that appear while the log runs
NEW_USERS: Final = 0.12
NOVELTY_BOOST: Final = 1.5  # log-odds by which an item that has just appeared is shown more often ...
NOVELTY_SPAN: Final = 0.06  # ... decaying over this share of the log
TASTE_EXPOSURE: Final = 1.2  # log-odds of exposure per standard deviation of taste
FIRST_YEAR: Final = 1980
LAST_YEAR: Final = 2019  # items on sale before the log opens are from no later year
LOG_START: Final = 1_577_836_800  # 2020-01-01 in UTC
LOG_YEARS: Final = 4
SECONDS_PER_YEAR: Final = 31_557_600
EXPOSURE_CHUNK: Final = 4096  # rows whose item probabilities are held at once: this times the items


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """Size and difficulty of the generated log.

    Attributes:
      users, items, makers, rows: How many of each; memory grows with users times items.
      click_rate: Mean true click probability.
      signal: Standard deviation of the true logit; 1.7 puts the best possible AUC near 0.82.
      seed: Same seed, same table.
    """

    users: int = 1200
    items: int = 600
    makers: int = 60
    rows: int = 24_000
    click_rate: float = 0.37
    signal: float = 1.7
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
          ValueError: A count is not positive, a rate is outside (0, 1), or the log has more rows than seconds.
        """
        for name in ("users", "items", "makers", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.rows > LOG_YEARS * SECONDS_PER_YEAR // 2:
            raise ValueError(f"{self.rows} rows do not fit a log of {LOG_YEARS} years with one row a second.")
        if self.makers > len(MAKER_SYLLABLES.split()) ** 2:
            raise ValueError(f"There are names for {len(MAKER_SYLLABLES.split()) ** 2} makers, not for {self.makers}.")
        if not 0 < self.click_rate < 1 or self.signal <= 0:
            raise ValueError("click_rate must lie between 0 and 1, and signal above 0.")


@dataclasses.dataclass(frozen=True)
class _Catalogue:
    """Items, one entry each, and what the truth is made of."""

    titles: list[str]
    makers: list[str]
    genres: list[str]
    years: Int[np.ndarray, " I"]
    released: Float[np.ndarray, " I"]  # when it appears, 0 to 1 over the log; at or below 0: there from the start
    exposure: Float[np.ndarray, " I"]  # log popularity
    themes: Float[np.ndarray, "I K"]  # how much of each theme the title's words have
    genre: Int[np.ndarray, " I"]
    maker_style: Float[np.ndarray, "I K"]
    parts: dict[str, Float[np.ndarray, " I"]]  # the item's own parts of the true logit


def generate(config: SyntheticConfig) -> pa.Table:
    """Generates a click log in the order of time.

    Args:
      config: Size, difficulty and seed.

    Returns:
      Columns user_id, gender, age, occupation, item_id, title, maker, genre (strings), year, timestamp (seconds, all
      different), label (0 or 1, drawn with the row's probability) and click_probability (the truth).
    """
    # Streams of their own: a longer log or more users do not change the catalogue.
    seeds = np.random.SeedSequence(config.seed).spawn(3)
    item_rng, user_rng, row_rng = (np.random.Generator(np.random.PCG64(seed)) for seed in seeds)
    catalogue = _make_catalogue(config, item_rng)

    gender, age, occupation, taste = _make_users(config.users, user_rng)
    readiness = user_rng.normal(size=config.users)
    genre_taste = _unit(taste + user_rng.normal(size=taste.shape))[:, catalogue.genre]
    maker_taste = taste @ catalogue.maker_style.T
    theme_taste = taste @ catalogue.themes.T
    year_taste = np.outer(_unit(age.astype(float)), -_unit(catalogue.years.astype(float)))
    pairs = {
        "theme taste": _unit(theme_taste),
        "genre taste": _unit(genre_taste),
        "maker taste": _unit(maker_taste),
        "year taste": year_taste,
    }
    liking = sum((np.sqrt(SHARES[name]) * matrix for name, matrix in pairs.items()), np.zeros_like(theme_taste))

    clock = _timestamps(config.rows, row_rng)
    when = (clock - LOG_START) / (LOG_YEARS * SECONDS_PER_YEAR)
    user = _draw_users(config.users, when, user_rng, row_rng)
    item = _draw_items(user, when, catalogue, TASTE_EXPOSURE * _unit(liking), row_rng)

    fashion = _unit(item_rng.normal(size=len(THEMES)))
    logit = liking[user, item] + np.sqrt(SHARES["user"]) * readiness[user]
    for name, part in catalogue.parts.items():
        logit += np.sqrt(SHARES[name]) * part[item]
    logit += np.sqrt(SHARES["fashion"]) * _unit((when - 0.5) * (catalogue.themes @ fashion)[item])
    logit = config.signal * _unit(logit)
    probability = _sigmoid(logit + _intercept(logit, config.click_rate))
    label = (row_rng.random(config.rows) < probability).astype(np.int64)

    def at(values: list[str] | tuple[str, ...], indices: Int[np.ndarray, " N"]) -> pa.Array:
        return pa.array(values, pa.string()).take(pa.array(indices))

    return pa.table(
        {
            "user_id": at([f"u{n:04d}" for n in range(config.users)], user),
            "gender": at(("female", "male"), gender[user]),
            "age": at(AGES, age[user]),
            "occupation": at(OCCUPATIONS, occupation[user]),
            "item_id": at([f"i{n:04d}" for n in range(config.items)], item),
            "title": at(catalogue.titles, item),
            "maker": at(catalogue.makers, item),
            "genre": at(catalogue.genres, item),
            "year": catalogue.years[item],
            "timestamp": clock,
            "label": label,
            "click_probability": probability,
        }
    )


def _make_catalogue(config: SyntheticConfig, rng: np.random.Generator) -> _Catalogue:
    items, themes = config.items, len(THEMES)
    words = [word for text in THEMES.values() for word in text.split()] + NEUTRAL_WORDS.split()
    theme_of_word = np.concatenate(
        [np.full(len(text.split()), k) for k, text in enumerate(THEMES.values())]
        + [np.full(len(NEUTRAL_WORDS.split()), -1)]
    )
    # A word leans to its theme but has a colour of its own, and some themes are better liked than others.
    vectors = np.eye(themes)[theme_of_word] * (theme_of_word >= 0)[:, None] * 1.5
    vectors = vectors + rng.normal(scale=0.25, size=vectors.shape)
    appeal = rng.normal(scale=0.6, size=themes + 1)[theme_of_word] + rng.normal(size=len(words))

    # Makers have a style, which decides on genres and through them on words.
    style = rng.normal(size=(config.makers, themes))
    quality = rng.normal(size=config.makers)
    maker = rng.choice(config.makers, size=items, p=_zipf(config.makers, ACTIVITY_EXPONENT))
    genre = np.argmax(1.2 * style[maker] + rng.gumbel(size=(items, themes)), axis=1)
    second = rng.integers(themes, size=items)  # titles mix two themes

    # Some words are far more common than others.
    chance = np.where(theme_of_word < 0, 1.3, 0.0) + rng.normal(scale=0.8, size=len(words))
    leaning = 4.0 * (genre[:, None] == theme_of_word) + 2.5 * (second[:, None] == theme_of_word) + chance
    chosen = _draw_titles(leaning, rng)
    lengths = np.maximum((chosen >= 0).sum(axis=1), 1)[:, None]
    used = (chosen >= 0)[:, :, None]
    item_themes = (vectors[chosen] * used).sum(axis=1) / np.sqrt(lengths)
    words_part = _unit((appeal[chosen] * used[:, :, 0]).sum(axis=1) / np.sqrt(lengths[:, 0]))

    own = _unit(rng.normal(size=items))
    genre_appeal = rng.normal(size=themes)
    released = np.where(rng.random(items) < NEW_ITEMS, rng.random(items), -1.0)
    if (released > 0).all():  # the first rows need something to show
        released[0] = -1.0
    age = np.minimum(rng.exponential(9.0, size=items), LAST_YEAR - FIRST_YEAR).astype(np.int64)
    years = np.where(released > 0, LAST_YEAR + 1 + (released * LOG_YEARS).astype(np.int64), LAST_YEAR - age)
    # What is good is shown more often, but mostly popularity is luck.
    rank = np.argsort(np.argsort(-(0.5 * own + 0.5 * quality[maker] + 1.5 * rng.normal(size=items))))

    syllables = MAKER_SYLLABLES.split()
    first, last = np.divmod(rng.permutation(len(syllables) ** 2)[: config.makers], len(syllables))
    kinds = rng.integers(len(MAKER_KINDS), size=config.makers)
    names = [
        f"{syllables[a]}{syllables[b]} {MAKER_KINDS[k]}".title() for a, b, k in zip(first, last, kinds, strict=True)
    ]
    genre_names = list(THEMES)
    return _Catalogue(
        titles=[" ".join(words[w] for w in row if w >= 0).title() for row in chosen],
        makers=[names[m] for m in maker],
        genres=[genre_names[g] for g in genre],
        years=years,
        released=released,
        exposure=-POPULARITY_EXPONENT * np.log(rank + RANK_SHIFT),
        themes=item_themes,
        genre=genre,
        maker_style=style[maker] + rng.normal(scale=0.3, size=(items, themes)),
        parts={
            "words": words_part,
            "maker": _unit(quality[maker]),
            "genre": _unit(genre_appeal[genre]),
            "item": own,
        },
    )


def _draw_titles(leaning: Float[np.ndarray, "I W"], rng: np.random.Generator) -> Int[np.ndarray, "I 4"]:
    """Draws two to four different words an item, and no title twice; -1 fills short titles."""

    def draw(rows: Int[np.ndarray, " R"]) -> Int[np.ndarray, "R 4"]:
        # The largest Gumbel-perturbed scores are a draw without replacement.
        best = np.argsort(-(leaning[rows] + rng.gumbel(size=(len(rows), leaning.shape[1]))), axis=1)[:, :4]
        length = rng.choice((2, 3, 4), p=(0.35, 0.45, 0.2), size=len(rows))
        return np.where(np.arange(4) < length[:, None], best, -1)

    chosen = draw(np.arange(len(leaning)))
    while True:
        _, firsts = np.unique(chosen, axis=0, return_index=True)
        again = np.setdiff1d(np.arange(len(chosen)), firsts)
        if not again.size:
            return chosen
        chosen[again] = draw(again)


def _make_users(
    users: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " U"], Int[np.ndarray, " U"], Int[np.ndarray, " U"], Float[np.ndarray, "U K"]]:
    """Demographics, and a taste for each theme that they partly explain."""
    gender = rng.integers(2, size=users)
    age = rng.choice(len(AGES), size=users, p=(0.08, 0.22, 0.28, 0.2, 0.12, 0.1))
    occupation = rng.integers(len(OCCUPATIONS), size=users)
    effects = {
        "gender": rng.normal(size=(2, len(THEMES)))[gender],
        "age": rng.normal(size=(len(AGES), len(THEMES)))[age],
        "occupation": rng.normal(size=(len(OCCUPATIONS), len(THEMES)))[occupation],
        "person": rng.normal(size=(users, len(THEMES))),
    }
    taste = sum((TASTE_PARTS[name] * effect for name, effect in effects.items()), np.zeros((users, len(THEMES))))
    return gender, age, occupation, taste


def _timestamps(rows: int, rng: np.random.Generator) -> Int[np.ndarray, " N"]:
    """Rising seconds, no two the same, so that a split by time is a split by row."""
    spread = np.sort(rng.random(rows)) * (LOG_YEARS * SECONDS_PER_YEAR - rows)
    return LOG_START + spread.astype(np.int64) + np.arange(rows)


def _draw_users(
    users: int, when: Float[np.ndarray, " N"], user_rng: np.random.Generator, rng: np.random.Generator
) -> Int[np.ndarray, " N"]:
    """Who acts in each row: activity has a long tail, and some users join late."""
    joined = np.where(user_rng.random(users) < NEW_USERS, user_rng.random(users), -1.0)
    joined[0] = -1.0  # the first rows need somebody
    by_time = np.argsort(joined, kind="stable")
    cumulative = np.cumsum(user_rng.permutation(_zipf(users, ACTIVITY_EXPONENT))[by_time])
    present = np.searchsorted(joined[by_time], when, side="right")
    drawn = np.searchsorted(cumulative, rng.random(len(when)) * cumulative[present - 1], side="right")
    return by_time[np.minimum(drawn, present - 1)]


def _draw_items(
    user: Int[np.ndarray, " N"],
    when: Float[np.ndarray, " N"],
    catalogue: _Catalogue,
    taste: Float[np.ndarray, "U I"],
    rng: np.random.Generator,
) -> Int[np.ndarray, " N"]:
    """What each row shows: the popular, the new, and what suits the user."""
    item = np.empty(len(user), np.int64)
    uniform = rng.random(len(user))
    for start in range(0, len(user), EXPOSURE_CHUNK):
        rows = slice(start, start + EXPOSURE_CHUNK)
        on_sale = when[rows, None] - catalogue.released  # [n, I]
        novelty = np.where(catalogue.released > 0, NOVELTY_BOOST * np.exp(-np.maximum(on_sale, 0) / NOVELTY_SPAN), 0.0)
        weight = np.exp(catalogue.exposure + taste[user[rows]] + novelty) * (on_sale >= 0)
        cumulative = np.cumsum(weight, axis=1)
        # The first item whose cumulative weight is above the draw: never one of weight 0.
        item[rows] = np.argmax(cumulative > uniform[rows, None] * cumulative[:, -1:], axis=1)
    return item


def _zipf(count: int, exponent: float) -> Float[np.ndarray, " C"]:
    """Probabilities that fall with the rank."""
    weight = (np.arange(count) + RANK_SHIFT) ** -exponent
    return weight / weight.sum()


def _unit(values: Matrix) -> Matrix:
    """Shifted and scaled to mean 0 and standard deviation 1; constants become 0."""
    deviation = values.std()
    return (values - values.mean()) / (deviation if deviation > 0 else 1.0)


def _sigmoid(logit: Matrix) -> Matrix:
    return 0.5 * (1.0 + np.tanh(0.5 * logit))  # does not overflow


def _intercept(logit: Float[np.ndarray, " N"], rate: float) -> float:
    """The constant that makes the mean probability `rate`, by bisection."""
    low, high = -30.0 - float(logit.max()), 30.0 - float(logit.min())
    for _ in range(60):
        middle = 0.5 * (low + high)
        if _sigmoid(logit + middle).mean() < rate:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)
