"""Small generated data in the formats of the UCSD Book Graph. No row of the real data is in here."""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

INTERACTIONS, BOOK_MAP, USER_MAP = "goodreads_interactions.csv", "book_id_map.csv", "user_id_map.csv"
BOOKS, AUTHORS = "goodreads_books.json.gz", "goodreads_book_authors.json.gz"
GENRES, WORKS = "goodreads_book_genres_initial.json.gz", "goodreads_book_works.json.gz"
USERS_MADE, BOOKS_MADE, ROWS = 30, 24, 400


@dataclass
class Raw:
    """Text of every file, which a test may damage before it is written, and what is in them."""

    text: dict[str, str]
    log: list[list[int]]  # user, book, is_read, rating, is_reviewed
    users: list[str]
    books: list[dict[str, Any]]

    def replace_line(self, name: str, number: int, line: str) -> None:
        lines = self.text[name].split("\n")
        lines[number - 1] = line
        self.text[name] = "\n".join(lines)

    def folder(self, path: Path) -> Path:
        path.mkdir()
        for name, text in self.text.items():
            (path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path


def made_book(number: int) -> dict[str, Any]:
    missing = number % 6 == 5
    return {
        "isbn": "",
        "text_reviews_count": "" if missing else str(number * 3),
        "popular_shelves": [{"count": "12", "name": "to-read"}],
        "is_ebook": "true" if number % 3 == 0 else "false",
        "average_rating": f"{3 + number / 30:.2f}",
        "similar_books": ["1"],
        "format": "" if missing else "Paperback",
        "authors": []
        if missing
        else [{"author_id": str(70 + number % 5), "role": ""}, {"author_id": "71", "role": "x"}],
        "publisher": "" if missing else f"Presse é {number % 3}",
        "num_pages": "" if missing else str(100 + number),
        "publication_year": "" if missing else str(1990 + number),
        "book_id": str(5000 + number),
        "work_id": "" if missing else str(9000 + number // 2),
        "title": f'A "title", {number}; half',
    }


def made_genres(number: int) -> dict[str, int]:
    names = ("poetry", "fantasy, paranormal", "children")
    return {name: number + 1 for i, name in enumerate(names) if (number + i) % 3 and number % 6 != 5}


def make_raw(seed: int = 0) -> Raw:
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(USERS_MADE * BOOKS_MADE)[:ROWS].tolist()
    log = []
    for pair in pairs:
        rating = int(rng.integers(0, 6))
        log.append([pair // BOOKS_MADE, pair % BOOKS_MADE, int(rating > 0), rating, int(rng.integers(0, 2))])
    users = [f"{u * 7919:032x}" for u in range(USERS_MADE)]
    books = [made_book(b) for b in range(BOOKS_MADE)]

    def lines(records: list[dict[str, Any]]) -> str:
        return "".join(json.dumps(record) + "\n" for record in records)

    text = {
        INTERACTIONS: "user_id,book_id,is_read,rating,is_reviewed\n"
        + "".join(",".join(map(str, row)) + "\n" for row in log),
        BOOK_MAP: "book_id_csv,book_id\n" + "".join(f"{b},{5000 + b}\n" for b in range(BOOKS_MADE)),
        USER_MAP: "user_id_csv,user_id\n" + "".join(f"{u},{name}\n" for u, name in enumerate(users)),
        BOOKS: lines(books[::-1]),
        AUTHORS: lines([{"average_rating": "3.9", "author_id": str(70 + a), "name": f"Änne {a}"} for a in range(5)]),
        GENRES: lines([{"book_id": str(5000 + b), "genres": made_genres(b)} for b in range(BOOKS_MADE)]),
        WORKS: lines([{"work_id": str(9000 + w), "media_type": "book" if w % 2 else ""} for w in range(12)]),
    }
    return Raw(text, log, users, books)
