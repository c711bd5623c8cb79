"""What a request for scores holds: JSON to rows that can be scored, or one sentence that says why not.

Whatever is let through here is scored; nothing behind it fails for a row's sake. A value is spelled as `alt-jax
predict` spells it in a column of a table, so that both give the same score.
"""

import json
import math
import re
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationError, WithJsonSchema, create_model
from pydantic import Field as Described
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException

from alt_jax.data import fields, spelling
from alt_jax.data.spelling import Spelled
from alt_jax.errors import InputError, nearest
from alt_jax.schema import Field, Schema

_NUMBER = re.compile(r"[\d.eE+-]+")
_SCALAR: dict[str, Any] = {"type": ["string", "number", "boolean", "null"]}
_SPELLINGS = {
    "number": 'A number, however it is written: 3, 3.0 and "3.00" are the same.',
    "boolean": "true or false, as JSON has them or as a string.",
    "time": "A time as a string like 2026-09-01 10:30:00 or 2026-09-01T10:30:00+02:00; midnight is 2026-09-01.",
}
_SHOWN = 100  # characters of a name that messages repeat, and look for a similar one to


class RowModel:
    """Reads the rows of a dataset's schema.

    Attributes:
      row: The pydantic model of a row. Its fields are called as columns are, by alias only: a column may have a name
        that pydantic does not take.
    """

    def __init__(self, schema: Schema, read: Collection[str] | None = None) -> None:
        """Makes the model.

        Args:
          schema: Of the dataset.
          read: Columns that the scoring model reads; the others may be left out. None: all.
        """
        self._fields = schema.fields
        config = ConfigDict(extra="forbid")
        annotations: dict[str, Any] = {
            f"f{n}": _annotation(field)
            if read is None or field.column in read
            else (_annotation(field), [""])  # of what may be missing, its default
            for n, field in enumerate(schema.fields)
        }
        self.row: type[BaseModel] = create_model("Row", __config__=config, **annotations)
        self._request: type[BaseModel] = create_model("Request", __config__=config, rows=list[self.row])  # type: ignore[name-defined]

    def json_schema(self) -> dict[str, Any]:
        """The JSON Schema of a row."""
        return self.row.model_json_schema(by_alias=True)

    def read(self, body: bytes, max_rows: int) -> list[Any]:
        """The rows of a request's body.

        Raises:
          HTTPException: 400 where it is no JSON, 413 where it has more than `max_rows`, 422 where it does not fit.
        """
        found = loads(body)
        rows = found.get("rows") if isinstance(found, dict) else None
        if isinstance(rows, list) and len(rows) > max_rows:
            raise HTTPException(413, f"{len(rows):,} rows are more than the {max_rows:,} that a request may have.")
        try:
            request: Any = self._request.model_validate(found)
        except ValidationError as error:
            raise HTTPException(422, self._sentence(error)) from None
        read: list[Any] = request.rows
        return read

    def spell(self, rows: Sequence[Any]) -> list[Spelled]:
        """The columns of rows that were read, for `Scorer.score_spelled`."""
        return [
            fields.spell_rows([getattr(row, f"f{n}") for row in rows], field) for n, field in enumerate(self._fields)
        ]

    def _sentence(self, error: ValidationError) -> str:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        loc, kind = first["loc"], first["type"]
        if kind in ("missing", "extra_forbidden"):
            name, where = str(loc[-1])[:_SHOWN], _path(loc[:-1])
            if kind == "missing":
                return f"{where} has no {name!r}; give it, as null if it is not known."
            known = [field.column for field in self._fields] if len(loc) > 1 else ["rows"]
            return f"{where} has an unknown key {name!r}; {nearest(name, known)}"
        said = {"model_type": "should be an object", "list_type": "should be a list"}.get(kind, first["msg"])
        return f"{_path(loc)} {said}."


def loads(body: bytes) -> Any:
    """JSON by the letter: UTF-8, no key twice, no NaN, no surrogate that stands alone.

    Raises:
      HTTPException: 400.
    """
    try:
        text = body.decode()
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise HTTPException(400, "The body is not UTF-8.") from None
    except UnicodeEncodeError:
        raise HTTPException(400, "A string in the body holds half of a surrogate pair.") from None
    except RecursionError:
        raise HTTPException(400, "The body is nested too deeply.") from None
    except json.JSONDecodeError as error:
        raise HTTPException(400, f"The body is not JSON: {error.msg}, at character {error.pos}.") from None
    except ValueError as error:  # of a hook below, or an integer of more digits than Python reads
        raise HTTPException(400, f"The body cannot be read: {error}.") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"an object has the key {twice[:_SHOWN]!a} twice")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON; null stands for a number that is not known")


def _path(loc: Sequence[int | str]) -> str:
    """A place in the body as JavaScript would write it: `rows[3].age`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part[:_SHOWN]}" for part in loc]
    return "".join(parts).removeprefix(".") or "The body"


def _annotation(field: Field) -> Any:
    """Type, description and reader of a field's values; every value becomes the list of its strings."""
    reader: Callable[[Any], list[str]] = _one
    json_schema: dict[str, Any] = _SCALAR
    said = "As in the training data; null: not known."
    if field.kind == "numeric":
        reader, json_schema = partial(_number, field=field), {"type": ["number", "string", "null"]}
        said = "A finite number, or a string that spells one; null: not known."
    elif field.kind in ("multi", "sequence"):
        reader, json_schema = partial(_list, field=field), {"anyOf": [{"type": "array", "items": _SCALAR}, _SCALAR]}
        order = "newest first" if field.kind == "sequence" else "in any order"
        said = f"A list, {order}, or one string with {field.separator!r} between; the first {field.slots} are read."
    if field.kind != "numeric" and field.type in _SPELLINGS:
        said = f"{said} {_SPELLINGS[field.type]}"
    schema = {**json_schema, "title": field.name, "description": said}
    return Annotated[Any, PlainValidator(reader), WithJsonSchema(schema), Described(alias=field.column)]


def _scalar(value: Any) -> str:
    if not isinstance(value, str | bool | int | float | None):
        raise PydanticCustomError("scalar", "should be a string, a number, true, false or null")
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("finite", "is a number too large for any float")
    try:
        return spelling.text_of(value)
    except OverflowError:
        raise PydanticCustomError("range", "is an integer of more than 64 bits; give it as a string") from None


def _one(value: Any) -> list[str]:
    return [_scalar(value)]


def _list(value: Any, field: Field) -> list[str]:
    if isinstance(value, list):
        return [text for part in value if (text := _scalar(part).strip())]
    return spelling.split(_scalar(value), field.separator)


def _number(value: Any, field: Field) -> list[str]:
    spelled = _scalar(value)
    assert field.numeric is not None
    try:
        number = fields.parse_numbers([spelled], field.column, "the row")
        fields.scaled(field.numeric, number, [spelled], field.column, "the row")
    except InputError:
        if _NUMBER.fullmatch(spelled):
            raise PydanticCustomError("size", "is too large a number") from None
        raise PydanticCustomError("number", "should be a finite number or null") from None
    return [spelled]
