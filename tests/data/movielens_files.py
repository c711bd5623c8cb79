"""Small generated data in the original formats. No row of the real MovieLens data is in here."""

import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

FOLDERS = {"movielens_100k": "ml-100k", "movielens_1m": "ml-1m"}
TITLES = (
    *('"Quoted" Beginning, The (1991)', "'Til Tomorrow (1990)", "Café Olé (1987)", '12" of Rain (1999)'),
    *(
        "Plain (1950)",
        "Commas, Many, Of Them (1971)",
        "Größe (2000)",
        'Ends "quoted"',
        "Semi;colon (1962)",
        "Ünder (1988)",
    ),
)
USERS, MOVIES = 12, len(TITLES)


@dataclass
class Raw:
    """Files of a release that a test may damage before they are written."""

    source: str
    files: dict[str, bytes]
    ratings: np.ndarray = field(repr=False)  # user, movie, rating, timestamp

    @property
    def names(self) -> tuple[str, str, str]:
        """Names of ratings, users and movies."""
        old = self.source == "movielens_100k"
        return ("u.data", "u.user", "u.item") if old else ("ratings.dat", "users.dat", "movies.dat")

    def replace_line(self, name: str, number: int, line: str) -> None:
        lines = self.files[name].split(b"\n")
        lines[number - 1] = line.encode("latin-1")
        self.files[name] = b"\n".join(lines)

    def zip(self, path: Path) -> Path:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in self.files.items():
                archive.writestr(f"{FOLDERS[self.source]}/{name}", data)
        return path

    def folder(self, path: Path) -> Path:
        path.mkdir()
        for name, data in self.files.items():
            (path / name).write_bytes(data)
        return path


def make_raw(source: str, seed: int = 0) -> Raw:
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(USERS * MOVIES)[:100]
    user, movie = pairs // MOVIES + 1, pairs % MOVIES + 1
    ratings = np.stack([user, movie, rng.integers(1, 6, 100), rng.integers(874_000_000, 874_000_050, 100)], axis=1)
    # The last user and the last movie come so late that a split by time has them in valid and test only.
    ratings[(user == USERS) | (movie == MOVIES), 3] += 100
    old = source == "movielens_100k"
    text = {
        "ratings": "".join(("\t" if old else "::").join(map(str, row)) + "\n" for row in ratings.tolist()),
    }
    people = [(str(u), "MF"[u % 2], u) for u in range(1, USERS + 1)]
    if old:
        text["users"] = "".join(
            f"{u}|{20 + n}|{sex}|{'artist' if n % 3 else 'other'}|{n:05d}\n" for u, sex, n in people
        )
        flags = ["|".join("01"[(m + g) % 7 == 0] for g in range(19)) for m in range(MOVIES)]
        text["movies"] = "".join(
            f"{m + 1}|{title}|01-Jan-1990||http://example.org/{m}|{flags[m]}\n" for m, title in enumerate(TITLES)
        )
        names = ("u.data", "u.user", "u.item")
    else:
        ages = (1, 18, 25, 35, 45, 50, 56)
        text["users"] = "".join(f"{u}::{sex}::{ages[n % 7]}::{n % 21}::{n:05d}-11\n" for u, sex, n in people)
        text["movies"] = "".join(f"{m + 1}::{title}::Drama|War\n" for m, title in enumerate(TITLES))
        names = ("ratings.dat", "users.dat", "movies.dat")
    files = dict(zip(names, (text[part].encode("latin-1") for part in ("ratings", "users", "movies")), strict=True))
    if old:
        files["u.info"] = f"{USERS} users\n{MOVIES} items\n100 ratings\n".encode()
    return Raw(source, files, ratings)
