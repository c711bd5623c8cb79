"""The generated log has the structure that it promises, whatever the seed."""

import numpy as np
import pyarrow as pa
import pytest

from alt_jax.data.synthetic import NEUTRAL_WORDS, SHARES, THEMES, SyntheticConfig, generate

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module", params=SEEDS)
def table(request) -> pa.Table:
    return generate(SyntheticConfig(seed=request.param))


def column(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_numpy(zero_copy_only=False)


def split(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Train and test of the time-ordered 8:1:1 split."""
    ordered = table.sort_by("timestamp")
    return ordered.slice(0, len(table) * 8 // 10), ordered.slice(len(table) * 9 // 10)


def logit(table: pa.Table) -> np.ndarray:
    p = column(table, "click_probability")
    return np.log(p) - np.log1p(-p)


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Share of (positive, negative) pairs in the right order; the scores have no ties."""
    ranks = np.argsort(np.argsort(scores)) + 1
    positives = int(labels.sum())
    wins = ranks[labels == 1].sum() - positives * (positives + 1) / 2
    return wins / (positives * (len(labels) - positives))


def item_means(table: pa.Table) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Titles with the mean true logit and the number of their rows."""
    titles, index, counts = np.unique(column(table, "title"), return_inverse=True, return_counts=True)
    return titles.tolist(), np.bincount(index, logit(table)) / counts, counts


def bag_of_words(titles: list[str], words: list[str]) -> np.ndarray:
    return np.array([[word in title.split() for word in words] for title in titles], float)


def test_columns_and_types(table):
    assert table.column_names == [
        *("user_id", "gender", "age", "occupation", "item_id", "title", "maker", "genre"),
        *("year", "timestamp", "label", "click_probability"),
    ]
    assert len(table) == SyntheticConfig().rows
    assert table["title"].type == pa.string()
    assert set(column(table, "label").tolist()) == {0, 1}
    assert all(c.null_count == 0 for c in table.columns)
    assert (np.diff(column(table, "timestamp")) > 0).all()


def test_same_seed_same_table():
    config = SyntheticConfig(rows=2000, seed=3)
    assert generate(config).equals(generate(config))
    assert not generate(config).equals(generate(SyntheticConfig(rows=2000, seed=4)))


def test_catalogue_does_not_depend_on_the_log():
    def catalogue(config):
        rows = generate(config).select(["item_id", "title", "maker", "genre", "year"]).to_pylist()
        return {row["item_id"]: row for row in rows}

    short, long = catalogue(SyntheticConfig(rows=2000)), catalogue(SyntheticConfig(rows=4000, users=300))
    both = short.keys() & long.keys()
    assert len(both) > 300
    assert all(short[item] == long[item] for item in both)


def test_words_are_distinct_and_shares_whole():
    words = " ".join([*THEMES.values(), NEUTRAL_WORDS]).split()
    assert len(words) == len(set(words)) == 250
    assert sum(SHARES.values()) == pytest.approx(1)


def test_an_item_has_one_description(table):
    described = set(
        zip(*(column(table, n).tolist() for n in ("item_id", "title", "maker", "genre", "year")), strict=True)
    )
    assert len(described) == len({d[0] for d in described}) == len({d[1] for d in described})
    assert all(2 <= len(d[1].split()) <= 4 for d in described)


@pytest.mark.parametrize("name", ["item_id", "user_id"])
def test_long_tail(table, name):
    _, counts = np.unique(column(table, name), return_counts=True)
    counts = np.sort(counts)[::-1]
    top_tenth = counts[: len(counts) // 10].sum() / counts.sum()
    assert 0.3 < top_tenth < 0.6
    assert counts[0] > 10 * np.median(counts)


def test_time_split_brings_new_items_but_known_users(table):
    train, test = split(table)
    new_items = ~np.isin(column(test, "item_id"), np.unique(column(train, "item_id")))
    new_users = ~np.isin(column(test, "user_id"), np.unique(column(train, "user_id")))
    assert 0.08 < new_items.mean() < 0.25
    assert new_users.mean() < 0.1


def test_click_rate_and_calibration(table):
    p, label = column(table, "click_probability"), column(table, "label")
    assert p.mean() == pytest.approx(SyntheticConfig().click_rate, abs=1e-6)
    for tenth in np.array_split(np.argsort(p), 10):
        error = (label[tenth] - p[tenth]).mean()
        assert abs(error) < 4 * np.sqrt((p[tenth] * (1 - p[tenth])).sum()) / len(tenth)


def test_best_possible_auc_is_realistic(table):
    _, test = split(table)
    assert 0.79 < auc(column(test, "label"), column(test, "click_probability")) < 0.86


def test_words_explain_more_than_chance(table):
    titles, mean, _ = item_means(table)
    words = bag_of_words(titles, sorted({word for title in titles for word in title.split()}))
    words = words[:, words.sum(axis=0) >= 3]

    def between(values: np.ndarray) -> float:
        return float(np.var(values @ words / words.sum(axis=0)))

    rng = np.random.default_rng(0)
    chance = [between(rng.permutation(mean)) for _ in range(200)]
    assert between(mean) > np.mean(chance) + 6 * np.std(chance)


def test_words_predict_items_unseen_in_training(table):
    train, test = split(table)
    titles, mean, counts = item_means(train)
    words = sorted({word for title in titles for word in title.split()})
    bag = bag_of_words(titles, words)
    # Ridge regression of an item's mean true logit on its words, popular items counting more, up to a point.
    weight = np.minimum(counts, 20)[:, None]
    offset = np.average(mean, weights=weight[:, 0])
    beta = np.linalg.solve(bag.T @ (weight * bag) + 20 * np.eye(len(words)), bag.T @ (weight[:, 0] * (mean - offset)))

    new = [i for i, title in enumerate(column(test, "title")) if title not in set(titles)]
    new_titles, new_mean, new_counts = item_means(test.take(new))
    known = new_counts >= 3  # a mean over fewer rows says more about users than about the item
    predicted = bag_of_words(new_titles, words) @ beta
    assert known.sum() > 20
    assert np.corrcoef(predicted[known], new_mean[known])[0, 1] > 0.2


@pytest.mark.parametrize("config", [{"users": 1, "items": 1, "makers": 1, "rows": 1}, {"users": 5, "items": 3}])
def test_tiny_logs(config):
    table = generate(SyntheticConfig(**config))
    assert np.isfinite(column(table, "click_probability")).all()


@pytest.mark.parametrize(
    "config", [{"users": 0}, {"rows": -1}, {"click_rate": 1.0}, {"signal": 0.0}, {"makers": 1000}, {"rows": 10**9}]
)
def test_impossible_sizes_are_refused(config):
    with pytest.raises(ValueError, match=r"must|not fit|names for"):
        SyntheticConfig(**config)
