"""Published data sets: their fields, for readers and configs, and where their files should be."""

from pathlib import Path
from typing import NamedTuple

from alt_jax.config import DataConfig, FieldConfig
from alt_jax.data.declared import check_linked, choose_fields
from alt_jax.errors import InputError


class Published(NamedTuple):
    """What a published data set declares.

    Attributes:
      fields: In prompt order.
      linked: Groups of columns that give one another away.
      sides: Wider groups, for configs: the user and the item.
    """

    fields: tuple[FieldConfig, ...]
    linked: tuple[tuple[str, ...], ...]
    sides: tuple[tuple[str, ...], ...] = ()


MOVIELENS = Published(
    fields=(
        FieldConfig("user_id", "User ID"),
        FieldConfig("gender", "Gender"),
        FieldConfig("age", "Age"),
        FieldConfig("occupation", "Occupation"),
        FieldConfig("zipcode", "Zipcode"),
        FieldConfig("movie_id", "Movie ID"),
        FieldConfig("title", "Title"),
        FieldConfig("genre", "Genre"),
    ),
    linked=(("movie_id", "title"),),
    # 93 % of users are told apart by gender, age, occupation and zip code alone.
    sides=(("user_id", "gender", "age", "occupation", "zipcode"), ("movie_id", "title", "genre")),
)
BOOKCROSSING = Published(
    fields=(
        FieldConfig("user_id", "User ID"),
        FieldConfig("location", "Location"),
        FieldConfig("age", "Age"),
        FieldConfig("isbn", "ISBN"),
        FieldConfig("title", "Book title"),
        FieldConfig("author", "Author"),
        FieldConfig("year", "Publication year"),
        FieldConfig("publisher", "Publisher"),
    ),
    linked=(("isbn", "title"),),
    sides=(("user_id", "location", "age"), ("isbn", "title", "author", "year", "publisher")),
)
GOODREADS = Published(
    fields=(
        FieldConfig("user_id", "User ID"),
        FieldConfig("book_id", "Book ID"),
        FieldConfig("title", "Book title"),
        FieldConfig("genres", "Book genres"),
        FieldConfig("average_rating", "Average rating"),
        FieldConfig("reviews", "Number of book reviews"),
        FieldConfig("author_id", "Author ID"),
        FieldConfig("author", "Author name"),
        FieldConfig("pages", "Number of pages"),
        FieldConfig("is_ebook", "eBook flag"),
        FieldConfig("format", "Format"),
        FieldConfig("publisher", "Publisher"),
        FieldConfig("year", "Publication year"),
        FieldConfig("work_id", "Work ID"),
        FieldConfig("media_type", "Media type"),
    ),
    linked=(("book_id", "work_id", "title"), ("author_id", "author")),
)

# The file that a source is read from: the zip and its folder.
ARCHIVES = {"movielens_100k": "ml-100k", "movielens_1m": "ml-1m", "bookcrossing": "BX-CSV-Dump"}
GOODREADS_INTERACTIONS = "goodreads_interactions.csv"
_NEEDED = {
    "bookcrossing": "BX-CSV-Dump.zip or its unpacked folder",
    "goodreads": "the folder with the Book Graph's files",
}
_DECLARED = {
    **{"movielens_100k": MOVIELENS, "movielens_1m": MOVIELENS},
    **{"bookcrossing": BOOKCROSSING, "goodreads": GOODREADS},
}


def check(config: DataConfig) -> None:
    """Refuses what a reader of the data set would, as far as no file has to be read.

    Raises:
      InputError: The config declares what the data set has not, or its files are not there.
    """
    if config.source not in _DECLARED:
        return
    fields = choose_fields(config, _DECLARED[config.source].fields)
    check_linked(config.linked, [field.column for field in fields])
    path = raw_path(config)
    if path is None:
        return
    if config.source in ARCHIVES:
        require_archive(path, ARCHIVES[config.source])
    else:
        require_folder(path)


def raw_path(config: DataConfig) -> Path | None:
    """Where the files are; None where they are to be downloaded.

    Raises:
      InputError: The config does not say it, and nobody may download them.
    """
    if not config.raw and config.source in _NEEDED:
        raise InputError(f"Source {config.source!r} needs data.raw, {_NEEDED[config.source]}; set --data.raw.")
    return Path(config.raw) if config.raw else None


def require_archive(path: Path, folder: str) -> None:
    """Refuses a path with nothing there.

    Raises:
      InputError: There is nothing.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; set --data.raw to {folder}.zip or its unpacked folder.")


def require_folder(path: Path) -> None:
    """Refuses what is no folder of GoodReads.

    Raises:
      InputError: It is none.
    """
    if not path.is_dir():
        raise InputError(f"{path} is not a folder; set --data.raw to the folder that holds {GOODREADS_INTERACTIONS}.")
