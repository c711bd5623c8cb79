"""Fewer labels than rows: which, how many, and that a run is trained on those alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alt_jax import stages
from alt_jax.data.labelled import labelled
from alt_jax.data.shards import Rows
from alt_jax.errors import InputError


def rows(number: int) -> Rows:
    """Rows whose values are their numbers."""
    order = np.arange(number)
    return Rows(order[:, None].astype(np.int32), (order % 2).astype(np.uint8), order.astype(np.int64))


@given(st.integers(1, 300), st.floats(0.001, 1), st.integers(0, 5))
def test_a_share_is_so_many_rows_once_each(number, share, seed):
    found = labelled(rows(number), share, seed)
    chosen = found.values[:, 0]
    assert len(found.labels) == max(1, round(share * number))
    assert len(set(chosen.tolist())) == len(chosen)
    np.testing.assert_array_equal(found.labels, chosen % 2)
    np.testing.assert_array_equal(found.rows, chosen)
    np.testing.assert_array_equal(labelled(rows(number), share, seed).values, found.values)


@given(st.integers(2, 300), st.data())
def test_a_larger_share_holds_a_smaller_one(number, data):
    few = data.draw(st.integers(2, number))
    many = data.draw(st.integers(few, number))
    one, other = (set(labelled(rows(number), share, 3).values[:, 0].tolist()) for share in (few, many))
    assert (len(one), len(other)) == (few, many)
    assert one <= other


def test_all_of_them_are_the_same_rows_and_more_are_refused():
    every = rows(7)
    assert labelled(every, 1.0, 0) is every
    assert labelled(every, 7, 0) is every
    with pytest.raises(InputError, match=r"label_share asks for 8 of 7 labelled training rows; lower it"):
        labelled(every, 8, 0)


def test_seeds_draw_other_rows():
    drawn = {tuple(labelled(rows(300), 0.1, seed).values[:, 0].tolist()) for seed in range(5)}
    assert len(drawn) == 5


def test_finetuning_sees_no_other_label(tmp_path, tiny_config, tiny_dataset, monkeypatch):
    seen = []

    def train(task, run, checkpoints, mesh, rows, *rest, **options):
        seen.append(rows)
        raise InputError("enough")

    monkeypatch.setattr(stages, "train", train)
    config = tiny_config.override({"finetune.label_share": 0.25})
    with pytest.raises(InputError, match="enough"):
        stages.finetune(config, "ctr", None, tmp_path / "run")
    total = len(tiny_dataset.train.labels)
    assert len(seen[0].labels) == total // 4
    np.testing.assert_array_equal(
        seen[0].labels,
        np.asarray(tiny_dataset.train.labels)[np.isin(np.asarray(tiny_dataset.train.rows), seen[0].rows)],
    )


def test_a_number_of_rows_is_a_whole_one(tiny_config):
    with pytest.raises(InputError, match=r"label_share 2\.5 is above 1, hence a number of rows, and not a whole one"):
        tiny_config.override({"finetune.label_share": 2.5})
