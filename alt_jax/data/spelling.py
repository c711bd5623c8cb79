"""How a column becomes values: one spelling for a value, whatever type carries it.

Everything that reads rows goes through here: `prepare`, `predict`, `Scorer`, `serve`, and the code of an export, which
holds a copy of this file. So it needs NumPy and PyArrow only.

| values | spelling |
|---|---|
| text | as it is |
| numbers | as few digits as tell them apart, of their own type: `3` for 3, 3.0 and 3.00, `0.1` |
| truth values | `true`, `false` |
| times | `2026-09-01 10:30:00.5`, without the zeros at the end; midnight is `2026-09-01`; with a zone, UTC and `Z` |
| missing (null, NaN) | nothing |

A column of text may hold any of these, as in a CSV file: `type_of` tells which, for all of a column's values together,
and `as_type` spells them. Text of which two values would become one stays text: `1.1` and `1.10` may be two versions.
"""

import datetime
import decimal
import hashlib
import math
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Type = Literal["string", "number", "boolean", "time"]

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[ T](\d\d:\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)? ?(Z|[+-]\d\d(?::?\d\d)?)?)?", re.ASCII
)
_BOOLEANS = ("true", "false", "True", "False", "TRUE", "FALSE")
# For RE2, over all of a column's distinct values at once: what `as_type` leaves as it is, and what counts as a number
# in a column of text. Of `007` the zeros may matter.
_SPELLED_NUMBER = r"^(-?[1-9][0-9]*|0|-?(0|[1-9][0-9]*)\.[0-9]*[1-9])$"
_SPELLED_TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
_PLAIN_NUMBER = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$"
_ZONE = r" ?(Z|[+-][0-9]{2}(:?[0-9]{2})?)?"
_PLAIN_TIME = rf"^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}([ T][0-9]{{2}}:[0-9]{{2}}(:[0-9]{{2}}(\.[0-9]{{1,9}})?)?{_ZONE})?$"
_DONE = re.compile(_SPELLED_NUMBER.strip("^$"))
_LONGEST_INTEGER, _SMALLEST = 40, -20  # powers of ten between which a number is written without an exponent
_EXACT = 2.0**53  # a float64 holds every whole number up to here


class Spelled(NamedTuple):
    """A column as distinct strings and, for every row and slot, which of them stands there.

    Attributes:
      strings: Distinct.
      codes: int32[N, S], -1 behind the last value of a list.
      longer: bool[N], rows whose list has more values than slots; None where none has.
    """

    strings: list[str]
    codes: np.ndarray
    longer: np.ndarray | None = None


def spell(
    column: pa.Array | pa.ChunkedArray,
    *,
    slots: int | None = None,
    separator: str = "",
    type: str = "",
    hash_buckets: int = 0,
) -> Spelled:
    """Reads a column.

    Args:
      column: Of any type that has a plain spelling.
      slots: Most values of a list, for a column of lists; None: one value a row.
      separator: Between the values of a list that is stored as one string.
      type: Of the values; empty: as the column has them, see `type_of`.
      hash_buckets: Replaces values by the numbers of their buckets, so many; 0: does not.

    Raises:
      TypeError: The column is of a type without a plain spelling; the message goes on from its name.
      ValueError: It is damaged, likewise.
    """
    if slots is None:
        found = texts(column)
        spelled = Spelled(found.dictionary.to_pylist(), np.asarray(found.indices, np.int32)[:, None])
    elif _is_list(_plain_type(column.type)):
        spelled = _of_lists(column, slots)
    else:
        found = texts(column)
        spelled = _of_strings(found, slots, separator)
    return bucketed(spelled if type_of_column(column.type) == type else as_type(spelled, type), hash_buckets)


def spell_rows(
    rows: Sequence[Sequence[str]],
    *,
    slots: int | None = None,
    type: str = "",
    hash_buckets: int = 0,
) -> Spelled:
    """What `spell` gives for rows whose values are strings already: one a row, or for a list any number of them."""
    return bucketed(as_type(_numbered([list(row) for row in rows], slots or 1), type), hash_buckets)


def split(string: str, separator: str) -> list[str]:
    """The values of a list that is stored as one string; empty ones are none."""
    return [part for part in (part.strip() for part in string.split(separator)) if part]


def text_of(value: str | bool | int | float | None) -> str:
    """Spells one value as `texts` spells it in a column of its kind.

    Raises:
      OverflowError: It is an integer of more than 64 bits, which no column holds.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise OverflowError("an integer of more than 64 bits")
        return str(value)
    return _of_float(value) or ""


def type_of(strings: Sequence[str]) -> Type:
    """What all of a column's distinct values are; missing ones tell nothing."""
    values = pa.array([string for string in strings if string], pa.string())
    if not len(values):
        return "string"
    if pc.all(pc.is_in(values, value_set=pa.array(_BOOLEANS))).as_py():
        return "boolean"
    if _all_match(values, _PLAIN_NUMBER):
        return "number" if _all_match(values, _SPELLED_NUMBER) or _stay_apart(values, _number) else "string"
    return "time" if _all_match(values, _PLAIN_TIME) else "string"


def type_of_column(kind: pa.DataType) -> Type | Literal[""]:
    """What the values of a column are by its type alone; empty where the type does not say, as for strings."""
    kind = _plain_type(kind)
    if _is_list(kind):
        kind = _plain_type(kind.value_type)
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    return "time" if _is_time(kind) else ""


def as_type(spelled: Spelled, type: str) -> Spelled:
    """Values of one type in that type's spelling; what is not of that type stays as it is."""
    strings = canonical(spelled.strings, type)
    return spelled if strings is spelled.strings else _merged(strings, spelled)


def canonical(strings: list[str], type: str) -> list[str]:
    """Each string in its type's spelling; what is not of that type stays as it is."""
    if type == "boolean":
        one = {**{string: string.lower() for string in _BOOLEANS}, "1": "true", "0": "false"}
        return [one.get(string, string) for string in strings]
    if type not in ("number", "time"):
        return strings
    pattern, change = (_SPELLED_NUMBER, _number) if type == "number" else (_SPELLED_TIME, _time)
    done = pc.match_substring_regex(pa.array(strings, pa.string()), pattern)
    if pc.all(done).as_py():
        return strings
    return [string if own else change(string) for string, own in zip(strings, done.to_pylist(), strict=True)]


def bucketed(spelled: Spelled, buckets: int) -> Spelled:
    """Values replaced by the numbers of their buckets, spelled out; a missing value stays missing."""
    if not buckets:
        return spelled
    numbers = hashes(spelled.strings) % np.uint64(buckets)
    strings = [str(number) if string else "" for string, number in zip(spelled.strings, numbers.tolist(), strict=True)]
    return _merged(strings, spelled)


def hashes(strings: Sequence[str], seed: int = 0) -> np.ndarray:
    """BLAKE2b of each string's UTF-8 as a number of 64 bits, uint64[n]: of its first 8 bytes, a little-endian number.

    Args:
      strings: To be hashed.
      seed: The salt, 16 bytes, little-endian.
    """
    salt = seed.to_bytes(16, "little")
    digests = [hashlib.blake2b(string.encode(), digest_size=8, salt=salt).digest() for string in strings]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64, copy=False)


def texts(column: pa.Array | pa.ChunkedArray) -> pa.DictionaryArray:
    """A column's values as text: distinct strings and an index per row.

    Raises:
      TypeError: The column is of a type without a plain spelling; the message goes on from its name.
      ValueError: It is damaged, likewise.
    """
    column = _encodable(column)
    if not len(column):  # which Arrow encodes for some types only
        return pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), pa.array([""]))
    # Encoding before combining keeps long columns within 32-bit string offsets.
    if not pa.types.is_dictionary(column.type):
        column = pc.dictionary_encode(column)
    array = column.unify_dictionaries().combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    try:
        array.validate(full=True)  # Parquet's strings are bytes that nobody has looked at
    except pa.ArrowInvalid as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise ValueError(f"is damaged ({reason}); write it again, as UTF-8") from None
    spelled = _texts_of(array.dictionary)
    # Two values may be spelled alike (null and ""; 0.0 and -0.0): encode the spellings once more. One further entry
    # stands for rows that are null.
    again = pc.dictionary_encode(pa.concat_arrays([pc.fill_null(spelled, ""), pa.array([""], pa.string())]))
    recode = np.asarray(again.indices, np.int32)
    codes = np.asarray(pc.fill_null(array.indices.cast(pa.int64()), len(array.dictionary)))
    return pa.DictionaryArray.from_arrays(pa.array(recode[codes]), again.dictionary)


def strings(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column, or a column of lists, with text in place of its values; raises as `texts` does."""
    if not _is_list(_plain_type(column.type)):
        return texts(column)
    length, inside = _flat(column)
    return pa.ListArray.from_arrays(pa.array(np.append(0, np.cumsum(length)), pa.int32()), inside.cast(pa.string()))


# --- columns ---


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values, without what wraps them."""
    while True:
        if _is_json(kind):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        else:
            return kind


def _is_json(kind: pa.DataType) -> bool:
    # The one extension that holds text; of others, the storage is not what they mean.
    return isinstance(kind, pa.BaseExtensionType) and kind.extension_name == "arrow.json"


def _is_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in (*tests, pa.types.is_list_view, pa.types.is_large_list_view))


def _is_time(kind: pa.DataType) -> bool:
    return pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind)


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in (*tests, pa.types.is_null, _is_bytes))


def _is_bytes(kind: pa.DataType) -> bool:
    # Spark and Hive write strings so, without saying that they are any.
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _encodable(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """The column as Arrow can give its distinct values."""
    kind = _plain_type(column.type)
    if not (_is_text(kind) or type_of_column(kind)) or _is_list(kind):
        raise TypeError(f"holds {column.type}, which has no plain spelling; store it as text")
    column = _unwrapped(column)
    text = _is_text(kind) and not _is_bytes(kind)
    if pa.types.is_dictionary(column.type) and text:
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        # Arrow unifies no dictionaries with nulls, and none of string views.
        odd = pa.types.is_string_view(kind) or any(chunk.dictionary.null_count for chunk in chunks)
        return _by_chunk(column, _without_nulls) if odd else column
    if pa.types.is_dictionary(column.type):
        column = column.cast(kind)
    if pa.types.is_float16(kind):
        return _by_chunk(column, _of_float16)
    wanted = kind
    if pa.types.is_null(kind) or pa.types.is_string_view(kind) or _is_bytes(kind):
        wanted = pa.large_string()
    elif pa.types.is_decimal(kind) and kind.bit_width < 128:
        wanted = pa.decimal128(kind.precision, kind.scale)
    elif pa.types.is_timestamp(kind) and kind.tz is not None:
        wanted = pa.timestamp(kind.unit, "UTC")
    try:
        return column if wanted == kind else column.cast(wanted)
    except pa.ArrowInvalid:
        raise ValueError(f"holds {column.type} that is no UTF-8 text; store it as text") from None


def _unwrapped(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    while True:
        if _is_json(column.type):
            column = _by_chunk(column, lambda chunk: chunk.storage)
        elif pa.types.is_run_end_encoded(column.type):
            column = pc.run_end_decode(column)
        else:
            return column


def _by_chunk(column: pa.Array | pa.ChunkedArray, change: Any) -> pa.Array | pa.ChunkedArray:
    if not isinstance(column, pa.ChunkedArray):
        return change(column)
    if not column.num_chunks:
        return change(pa.array([], column.type))
    return pa.chunked_array([change(chunk) for chunk in column.chunks])


def _without_nulls(chunk: pa.DictionaryArray) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(chunk.indices, pc.fill_null(chunk.dictionary.cast(pa.large_string()), ""))


def _of_float16(chunk: pa.Array) -> pa.Array:
    """float64 that has each number's own digits: 0.1, not 0.0999755859375."""
    numbers = chunk.to_numpy(zero_copy_only=False).astype(np.float16)
    distinct, code = np.unique(numbers.view(np.uint16), return_inverse=True)
    digits = np.array([_widened(number) for number in distinct.view(np.float16)])
    return pa.array(digits[code], mask=np.asarray(pc.is_null(chunk)))


def _widened(number: Any) -> float:
    """The float64 that has a narrower number's own digits; the number itself where it is whole."""
    wide = float(number)
    return wide if wide.is_integer() else float(str(number))


def _texts_of(values: pa.Array) -> pa.Array:
    """The spelling of distinct values; null for a missing one."""
    kind = values.type
    if pa.types.is_floating(kind):
        numbers = values.to_pylist()
        if kind != pa.float64():  # as few digits as tell numbers of this type apart
            narrow = values.to_numpy(zero_copy_only=False).dtype.type
            numbers = [None if number is None else _widened(narrow(number)) for number in numbers]
        return pa.array([_of_float(number) for number in numbers], pa.string())
    if pa.types.is_decimal(kind):
        return pa.array([None if n is None else _number(str(n)) for n in values.to_pylist()], pa.string())
    text = values.cast(pa.string())
    if _is_time(kind):
        text = pc.replace_substring_regex(text, r"\.0+(Z?)$", r"\1")
        text = pc.replace_substring_regex(text, r"(\.[0-9]*[1-9])0+(Z?)$", r"\1\2")
        if pa.types.is_timestamp(kind):
            text = pc.replace_substring_regex(text, " 00:00:00$", "")
    return text


def _flat(column: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, pa.DictionaryArray]:
    """How many values every list has, and all of them as text, one list after the other."""
    column = _unwrapped(column)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    lists = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.asarray(pc.fill_null(pc.list_value_length(lists), 0)), texts(pc.list_flatten(lists))


def _of_lists(column: pa.Array | pa.ChunkedArray, slots: int) -> Spelled:
    length, inside = _flat(column)
    row = np.repeat(np.arange(len(length)), length)
    strings = [string.strip() for string in inside.dictionary.to_pylist()]
    index = np.asarray(inside.indices, np.int32)
    kept = np.array([bool(string) for string in strings], bool)[index]  # an empty value is none, as in a string
    row, index = row[kept], index[kept]
    length = np.bincount(row, minlength=len(length))
    slot = np.arange(len(row)) - np.repeat(np.cumsum(length) - length, length)
    codes = np.full((len(length), slots), -1, np.int32)
    kept = slot < slots
    codes[row[kept], slot[kept]] = index[kept]
    codes[length == 0, 0] = len(strings)
    longer = length > slots
    return _merged([*strings, ""], Spelled([], codes, longer if longer.any() else None))


def _of_strings(found: pa.DictionaryArray, slots: int, separator: str) -> Spelled:
    distinct = _numbered([split(string, separator) for string in found.dictionary.to_pylist()], slots)
    index = np.asarray(found.indices)
    longer = None if distinct.longer is None else distinct.longer[index]
    return Spelled(distinct.strings, distinct.codes[index], longer)


def _numbered(rows: list[list[str]], slots: int) -> Spelled:
    number: dict[str, int] = {}
    codes = np.full((len(rows), slots), -1, np.int32)
    for row, values in enumerate(rows):
        kept = values[:slots] or [""]
        codes[row, : len(kept)] = [number.setdefault(value, len(number)) for value in kept]
    longer = np.array([len(values) > slots for values in rows], bool)
    return Spelled(list(number), codes, longer if longer.any() else None)


def _merged(strings: list[str], spelled: Spelled) -> Spelled:
    """The column with these strings in place of its own, each of them once."""
    distinct = list(dict.fromkeys(strings))
    if len(distinct) == len(strings):
        return spelled._replace(strings=distinct)
    number = {string: i for i, string in enumerate(distinct)}
    remap = np.array([*(number[string] for string in strings), -1], np.int32)
    return spelled._replace(strings=distinct, codes=remap[spelled.codes])


# --- values ---


def _all_match(values: pa.Array, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(values, pattern)).as_py())


def _stay_apart(values: pa.Array, change: Any) -> bool:
    """Whether different values stay different."""
    changed = {change(value) for value in values.to_pylist()}
    return len(changed) == len(values)


def _of_float(value: float | None) -> str | None:
    if value is None or math.isnan(value):
        return None
    if math.isinf(value):
        return repr(value)
    return str(int(value)) if value.is_integer() and abs(value) <= _EXACT else _number(repr(value))


def _number(text: str) -> str:
    stripped = text.strip()
    if _DONE.fullmatch(stripped) or not _NUMBER.fullmatch(stripped):
        return stripped
    try:
        exact = decimal.Decimal(stripped)
    except decimal.InvalidOperation:  # an exponent beyond any number's
        return stripped
    if not exact:
        return "0"
    if not _SMALLEST <= exact.adjusted() < _LONGEST_INTEGER:
        short = repr(float(stripped))
        return stripped if short in ("inf", "-inf", "0.0", "-0.0") else short
    if exact == exact.to_integral_value():
        return str(int(exact))
    short_exact = decimal.Decimal(repr(float(stripped)))
    return format(short_exact if short_exact == exact else exact, "f").rstrip("0")


def _time(text: str) -> str:
    found = _TIME.fullmatch(text)
    if not found:
        return text
    date, minutes, seconds, fraction, zone = found.groups()
    try:
        when = datetime.datetime.fromisoformat(f"{date} {minutes or '00:00'}:{seconds or '00'}")
        if zone and zone != "Z":
            sign, hours, rest = zone[0], int(zone[1:3]), int(zone[3:].lstrip(":") or 0)
            shift = datetime.timedelta(hours=hours, minutes=rest)
            when = when - shift if sign == "+" else when + shift
    except (ValueError, OverflowError):  # no day of any year
        return text
    fraction = (fraction or "").rstrip("0")
    if not zone and not fraction and when.time() == datetime.time():
        return when.date().isoformat()
    return f"{when.isoformat(' ')}{'.' if fraction else ''}{fraction}{'Z' if zone else ''}"
