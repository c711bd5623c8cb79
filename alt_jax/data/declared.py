"""What a config declares of raw data: the columns that become fields, and whether it agrees with itself."""

import dataclasses
from collections.abc import Sequence

from alt_jax.config import DataConfig, FieldConfig
from alt_jax.errors import InputError, nearest


def own_fields(config: DataConfig, *, in_memory: bool = False) -> tuple[FieldConfig, ...]:
    """The fields of an own table, each with a name.

    Args:
      config: Declares it.
      in_memory: Whether its rows are, so that it needs no file.

    Raises:
      InputError: The declaration is incomplete or contradicts itself.
    """
    if in_memory and (config.raw or config.valid or config.test):
        raise InputError("The rows are in memory, so data.raw, data.valid and data.test name others; leave them out.")
    if not (config.raw or in_memory):
        raise InputError("Source 'table' needs data.raw, a CSV or Parquet file; set it or pass --data.raw PATH.")
    if not config.fields:
        raise InputError("Source 'table' needs data.fields: the columns to use, in prompt order.")
    fields = tuple(dataclasses.replace(f, name=f.name or f.column) for f in config.fields)
    check_fields(config, fields)
    return (*fields, *_told_apart(config, fields))


def _told_apart(config: DataConfig, fields: Sequence[FieldConfig]) -> list[FieldConfig]:
    """Fields for the user and the item where those are no inputs: they stand in no prompt and in no table of ids."""
    columns, names = ({getattr(field, name) for field in fields} for name in ("column", "name"))
    found = []
    for what in ("user", "item"):
        column = getattr(config, what)
        if column is not None and column not in columns:
            name = column if column not in names else f"{column} ({what})"
            found.append(FieldConfig(column, name, kind="text", in_prompt=False))
            columns.add(column)
    return found


def own_columns(config: DataConfig, *, labelled: bool = True, special: bool = True) -> list[str]:
    """The columns that are read of an own table.

    Args:
      config: Declares it.
      labelled: Whether its rows have a label, and are divided by a column where there is one for that.
      special: Whether those that say something of a row are meant as well, or the fields' alone.
    """
    columns = [f.column for f in config.fields if f.kind != "sequence"]  # a sequence is made, not read
    columns += [column for column in (config.user, config.item) if column]
    if special:
        columns += [column for column in (config.timestamp, *((config.label, config.split) * labelled)) if column]
    return list(dict.fromkeys(columns))


def check_fields(config: DataConfig, fields: Sequence[FieldConfig]) -> None:
    """Checks that columns and names are distinct and that user, item, linked and label agree with them.

    Raises:
      InputError: They do not; names the column.
    """
    columns, names = [f.column for f in fields], [f.name for f in fields]
    for what, listed in (("column", columns), ("name", names)):
        twice = [entry for entry in listed if listed.count(entry) > 1]
        if twice:
            raise InputError(f"data.fields uses the {what} {twice[0]!r} twice; leave one of them out.")
    if config.label in columns:
        raise InputError(
            f"data.fields contains the label column {config.label!r}; a model must not see its label; leave it out."
        )
    if config.split in columns:
        raise InputError(f"data.fields contains the split column {config.split!r}, which tells nothing; leave it out.")
    if bool(config.valid) != bool(config.test):
        raise InputError("data.valid and data.test belong together; name both files, or neither.")
    if config.split and config.valid:
        raise InputError("data.split and data.valid both say how rows are divided; leave one of them out.")
    if not any(field.in_prompt for field in fields):
        raise InputError("No field is in the prompt; leave in_prompt of one of data.fields as it is.")
    for field in fields:
        if field.kind == "text" and not field.in_prompt:
            raise InputError(f"Field {field.column!r} is of kind 'text' and not in the prompt, so nothing reads it.")
    check_linked(config.linked, columns)


def check_linked(linked: Sequence[Sequence[str]], columns: Sequence[str]) -> None:
    """Checks groups that a config declares.

    Raises:
      InputError: One names a column that is no field, or they overlap, or one links nothing.
    """
    members = [column for group in linked for column in group]
    for column in members:
        if column not in columns:
            raise InputError(
                f"data.linked names column {column!r}, which is not among data.fields: {list(columns)}; "
                "name one of these."
            )
    if len(members) != len(set(members)) or any(len(group) < 2 for group in linked):
        raise InputError("data.linked must list groups of two or more columns, each column in one group only.")


def choose_fields(config: DataConfig, declared: Sequence[FieldConfig]) -> tuple[FieldConfig, ...]:
    """The declared fields of a published data set, or those of them that the config names.

    Raises:
      InputError: The config names an unknown field or one twice, or sets what only own tables have.
    """
    default = DataConfig()
    for option in ("label", "timestamp", "user", "item", "unlabelled", "csv", "split", "valid", "test"):
        if getattr(config, option) != getattr(default, option):  # a value that nobody reads would be a silent mistake
            raise InputError(f"data.{option} is for own tables; {config.source} declares its own: leave it out.")
    if not config.fields:
        return tuple(declared)
    own = {f.column: f.name for f in declared}
    for field in config.fields:
        if field.column not in own and field.kind != "sequence":  # a sequence is made, not read
            raise InputError(f"{config.source} has no field {field.column!r}; {nearest(field.column, list(own))}")
    columns = [f.column for f in config.fields]
    names = [f.name or own.get(f.column, f.column) for f in config.fields]
    for listed in (columns, names):
        twice = [entry for entry in listed if listed.count(entry) > 1]
        if twice:
            raise InputError(f"data.fields uses {twice[0]!r} twice; leave one of them out.")
    return tuple(dataclasses.replace(f, name=name) for f, name in zip(config.fields, names, strict=True))
