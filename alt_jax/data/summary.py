"""What `prepare` says about the data that it has written."""

from alt_jax import console
from alt_jax.data.dataset import Dataset, Vocabulary
from alt_jax.data.protocols import SPLITS, Split
from alt_jax.data.sources.raw import RawData
from alt_jax.data.values import Values
from alt_jax.schema import Field, Schema


def report(
    raw: RawData,
    split: Split,
    dataset: Dataset,
    vocabulary: Vocabulary,
    fields: list[Values],
) -> None:
    """Prints what a user needs to judge the data by."""
    schema = dataset.schema
    for notice in raw.notices:
        console.log(f"note: {notice}")
    console.log(f"{schema.source} · {schema.protocol} · label > {split.threshold:g} is positive")
    dropped = "".join(f" · {count:,} dropped: {reason}" for reason, count in split.dropped.items())
    console.log(f"rows   {raw.table.num_rows:,} read{dropped}")
    for name in SPLITS:
        part = schema.splits[name]
        without = f", and {part.unlabelled:,} without a label" if part.unlabelled else ""
        console.log(
            f"  {name:<6}{part.labelled:>11,} rows  {part.positives / part.labelled:.4f} positive  "
            f"split {part.hash[:12]}{without}",
            split=name,
            rows=part.rows,
            positives=part.positives,
        )
    absent = vocabulary.count == 0
    for what in schema.entities:
        held_out = dataset.entity("test", what)
        share = (absent[held_out] & (held_out >= 0)).mean()
        console.log(f"  test rows whose {what} is unseen in training: {share:.1%}", share=float(share))
        nobody = {name: int((dataset.entity(name, what) < 0).sum()) for name in SPLITS if what in dataset.nobody}
        if any(nobody.values()):
            counts = ", ".join(f"{count:,} in {name}" for name, count in nobody.items())
            console.log(f"  rows without a {what}, who are nobody's: {counts}; no history, no group, none is unseen")
    console.log(f"vocabulary ({schema.num_ids:,} feature ids)")
    for field, found in zip(schema.fields, fields, strict=True):
        seen = int((found.counts > 0).sum())
        rare = f", {seen - found.known:,} rare" if seen > found.known else ""
        kind = f"  ({said})" if (said := _kind(field)) else ""
        unseen = f"{len(found.counts) - seen:,} in valid/test only{rare}{kind}"
        console.log(f"  {field.name:<20}{found.known:>9,} in training, {unseen}")
        if found.cut:
            console.log(
                f"    its lists are cut to {field.slots} values in {found.cut:,} training rows; a larger slots would "
                "keep all of them"
            )
    text = schema.text
    console.log(
        f"text   {text.vocab_size:,} tokens ({text.tokenizer}); prompts of {schema.mean_tokens:.1f} tokens on average, "
        f"{text.length} at most"
    )
    console.log(f"  {cut_line(schema)}", cut=schema.cut, uncut_length=text.uncut_length)
    console.log(f"linked {'; '.join(' + '.join(group) for group in schema.linked) or 'none'}")
    console.log(f"hashes vocabulary {schema.vocabulary_hash[:12]} · data {schema.data_hash[:12]}")


def cut_line(schema: Schema) -> str:
    """How many prompts `text.max_length` cuts, and the least that cuts none."""
    text = schema.text
    rows = sum(split.rows for split in schema.splits.values())
    cut = f"{schema.cut:,} of {rows:,} prompts ({schema.splits['train'].cut:,} in training)" if schema.cut else "none"
    return f"text.max_length {text.max_length} cuts {cut}; {text.uncut_length} is the least that cuts none"


def _kind(field: Field) -> str:
    """What a field is, where it is not a category in the prompt."""
    if not field.is_input:
        return "no input: it groups rows"
    details = {
        "category": "",
        "numeric": f"{field.size - 1} bins",
        "multi": f"up to {field.slots} values",
        "sequence": f"up to {field.slots} items",
        "text": "no feature ids",
    }
    said = [*([field.kind] if field.kind != "category" else []), details[field.kind]]
    return ", ".join(part for part in (*said, "" if field.in_prompt else "not in the prompt") if part)
