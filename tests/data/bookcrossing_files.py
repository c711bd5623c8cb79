"""Small generated data in the format of BookCrossing's dump. No row of the real data is in here."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

RATINGS, USERS, BOOKS = "BX-Book-Ratings.csv", "BX-Users.csv", "BX-Books.csv"
HEADERS = {
    RATINGS: '"User-ID";"ISBN";"Book-Rating"',
    USERS: '"User-ID";"Location";"Age"',
    BOOKS: '"ISBN";"Book-Title";"Book-Author";"Year-Of-Publication";"Publisher";"Image-URL-S";"Image-URL-M";'
    '"Image-URL-L"',
}
LOCATIONS = ('here, "n/a", there', "&#304;zmir, turkey", "milano\n, italy", "tyne&wear", "back\\slash", "århus; dk")
TITLES = (
    *("Plain", '"Quoted" Beginning', 'O" Is for', "Semi;colon", 'Both "x"; y', "R&amp;D &notes", "Größe", "Two\nlines"),
    *("Ends \\", "Comma, Here"),
)
BOOKS_MADE = 40
AGES = ("NULL", "30", "0", "4", "5", "100", "101", "244")
YEARS = ("1999", "0", "2004", "2005", "2006", "2050", "1920")


@dataclass
class Raw:
    """Rows as lists of cells, and the files made of them, which a test may damage before they are written."""

    rows: dict[str, list[list[str]]]
    files: dict[str, bytes]

    def replace_line(self, name: str, number: int, line: str) -> None:
        lines = self.files[name].split(b"\n")
        lines[number - 1] = line.encode("latin-1")
        self.files[name] = b"\n".join(lines)

    def zip(self, path: Path) -> Path:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in self.files.items():
                archive.writestr(name, data)
        return path

    def folder(self, path: Path) -> Path:
        path.mkdir()
        for name, data in self.files.items():
            (path / name).write_bytes(data)
        return path


def quoted(cell: str) -> str:
    return cell if cell == "NULL" else '"' + cell.replace("\\", "\\\\").replace('"', '\\"') + '"'


def text_of(name: str, rows: list[list[str]], end: str = "\n") -> str:
    return "".join(line + end for line in [HEADERS[name], *(";".join(map(quoted, row)) for row in rows)])


def make_raw(seed: int = 0) -> Raw:
    rng = np.random.default_rng(seed)
    users = [[str(u + 1), LOCATIONS[u % 6], AGES[u % 8]] for u in range(40)]
    isbns = [f"{i:09d}{'0X'[i % 2]}" for i in range(BOOKS_MADE)]
    books = [
        [isbn, TITLES[i % len(TITLES)], f"Author {i % 4}", YEARS[i % 7], f"Press & Sons {i % 2}", "", "", ""]
        for i, isbn in enumerate(isbns)
    ]
    pairs = rng.permutation(40 * BOOKS_MADE)[:400]
    ratings = [
        [str(pair // BOOKS_MADE + 1), isbns[pair % BOOKS_MADE], str(rng.integers(0, 11))] for pair in pairs.tolist()
    ]
    rows = {RATINGS: ratings, USERS: users, BOOKS: books}
    ends = {RATINGS: "\n", USERS: "\r\n", BOOKS: "\n"}  # as in the original
    files = {name: text_of(name, rows[name], ends[name]).encode("latin-1") for name in rows}
    return Raw(rows, files)
