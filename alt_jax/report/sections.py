"""The sections of a report, in the order of the page. One that has nothing to say is left out."""

import json
import math
import statistics
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from alt_jax import comparison
from alt_jax.config import Config
from alt_jax.data.protocols import SPLITS
from alt_jax.data.summary import cut_line
from alt_jax.evaluate import undefined
from alt_jax.report import alignment, figures, measures, page
from alt_jax.report.alignment import Detection, Recovery
from alt_jax.report.asked import Asked
from alt_jax.report.clicks import Clicks
from alt_jax.report.measures import Bin, Ranks
from alt_jax.report.page import Html, Section
from alt_jax.report.sources import Logged, Studied
from alt_jax.report.verdict import verdicts

_ONE_CLASS = "undefined (one class)"


def sections(found: Asked, price: float | None) -> list[Section]:
    """All that has something to say.

    Args:
      found: What was asked.
      price: US dollars an hour.
    """
    return [
        Section(name, heading, blocks)
        for name, heading, make in (
            ("verdict", "Verdict", _verdict),
            ("overview", "Overview", _overview),
            ("results", "Clicks predicted", _results),
            ("study", "Ablations", _studies),
            ("curves", "Learning curves", _curves),
            ("cold-start", "Cold start", _cold_start),
            ("fusion", "Fusion", _fusion),
            ("alignment", "Alignment", _alignment),
            ("recovery", "Recovery of hidden fields", _recovery),
            ("data", "Dataset card", _cards),
            ("configuration", "Configuration", _configuration),
            ("machine", "Hardware and cost", partial(_machine, price=price)),
        )
        if any(blocks := list(make(found)))
    ]


def _verdict(found: Asked) -> Iterator[Html]:
    for one in verdicts(found):
        said = page.element("span", one.said, class_="bad") if one.bad else one.said
        yield page.paragraph(page.element("b", f"{one.about}: "), said)


def _overview(found: Asked) -> Iterator[Html]:
    yield page.tiles([*(_tile(found, run) for run in found.runs), *(_study_tile(study) for study in found.studies)])
    for run in found.runs:
        if run.result is None:
            said = f": not finished, at step {run.steps:,}; what is here is what it has written so far."
            yield page.note(page.element("b", run.name), said)
    for name, why in found.missing.items():
        yield page.note(page.element("b", name), f": what needs the model or the dataset is missing. {why}")


def _tile(found: Asked, run: Logged) -> tuple[str, str, str]:
    """What says the most about a run."""
    if run.result is None:
        return run.name, f"step {run.steps:,}", "not finished"
    if run.run.origin.stage == "finetune":
        test = run.result.get("test", {})
        return run.name, _metric(test, "auc"), f"test AUC, logloss {_metric(test, 'logloss')}"
    aligned = found.aligned.get(run.name)
    if aligned is None or aligned.after is None:
        return run.name, f"{run.steps:,}", "steps of pretraining"
    first = aligned.retrieval(aligned.after).text_to_ctr.first
    return run.name, f"{first:.1%}", f"of {aligned.rows:,} rows found by their text"


def _study_tile(study: Studied) -> tuple[str, str, str]:
    arms = len(dict.fromkeys(line.arm for line in study.lines))
    return study.name, f"{arms}", f"arms, {sum(len(line.seeds) for line in study.lines)} finished runs"


def _results(found: Asked) -> Iterator[Html]:
    yield from _clicks(found)
    done = [run for run in found.of("finetune") if run.result is not None]
    results = {run.name: run.result for run in done if run.result is not None}
    tables = []
    for split in ("test", "valid"):
        metrics = list(dict.fromkeys(name for result in results.values() for name in result.get(split, {})))
        if metrics:
            rows = [[_NAMES.get(m, m), *(_metric(r.get(split, {}), m) for r in results.values())] for m in metrics]
            what = "Test part, read once, at the end" if split == "test" else "Validation part, which chose the step"
            tables.append(page.table(("metric", *results), rows, what))
    yield page.side_by_side(*tables)


_NAMES = {
    "auc": "AUC",
    "gauc": "AUC within users (GAUC)",
    "ece": "calibration error (ECE)",
    "unseen_user_rows": "rows of unseen users",
    "unseen_user_positives": "clicked among them",
    "unseen_user_auc": "their AUC",
    "unseen_item_rows": "rows of unseen items",
    "unseen_item_positives": "clicked among them",
    "unseen_item_auc": "their AUC",
}


def _metric(values: Mapping[str, Any], name: str) -> str:
    """A metric of result.json, where an undefined one is null."""
    if name not in values:
        return "–"
    value = values[name]
    if value is not None:
        return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
    return f"undefined ({undefined(values, name)})"


def _studies(found: Asked) -> Iterator[Html]:
    for study in found.studies:
        yield page.heading(study.name)
        drawn = []
        for strategy in dict.fromkeys(line.strategy for line in study.lines):
            lines = [line for line in study.lines if line.strategy == strategy]
            start = "the mean of the first arm" if lines[0].auc else "0.5, for want of a mean of the first arm"
            caption = (
                f"Bars: mean over seeds, from {start} ({lines[0].arm}); strokes: ± one standard deviation; points: "
                "single seeds."
            )
            drawn.append(page.figure(figures.study(lines), f"{strategy}: test AUC by arm", caption))
        yield page.figures(*drawn)
        header, rows = comparison.table(study.lines)
        yield page.table(header, ([arm, strategy, *rest] for strategy, arm, *rest in rows), "All arms")
        yield page.join(page.paragraph(remark) for remark in comparison.remarks(study.lines))
        reasons = [
            [f"{line.strategy} {line.arm}, seed {seed}", why]
            for line in study.lines
            for seed, why in sorted((line.failed | line.not_run).items())
        ]
        if reasons:
            yield page.table(("run without a result", "why"), reasons, prose=True)


def _curves(found: Asked) -> Iterator[Html]:
    for stage, heading in (("pretrain", "Pretraining"), ("finetune", "Finetuning")):
        runs = found.of(stage)
        known = dict.fromkeys(name for run in runs for name in run.metrics)
        wanted = [name for name in _DRAWN if name in known]
        if any(run.run.origin.strategy == "joint" for run in runs):  # else it is the loss once more
            wanted += sorted(name for name in known if name.startswith("bce/"))
        drawn = []
        for name in wanted:
            series = {run.name: run.series(name) for run in runs}
            curves = {run: measures.smooth(*values) for run, values in series.items() if values[0]}
            if curves:
                dots = name.startswith("valid/")
                svg = figures.curves(curves, "step", _DRAWN.get(name, name), dots=dots)
                drawn.append(page.figure(svg, _DRAWN.get(name, name)))
        if drawn:
            yield page.heading(heading)
            yield page.figures(*drawn)
    if any(run.records for run in found.runs):
        yield page.paragraph(
            "Losses are means of up to 150 equal parts of a run, on training batches with dropout on; validation is "
            "that at the end of every epoch."
        )
    for run in found.runs:
        if not run.records:
            yield page.note(page.element("b", run.name), " has no metrics.jsonl, so there are no curves.")


_DRAWN = {
    "loss": "loss",
    "icl": "ICL, nats",
    "mlm": "MLM, nats a token",
    "mtm": "MTM, nats a field",
    "icl/top1_ctr_to_text": "ids find their text in the batch",
    "icl/top1_text_to_ctr": "text finds its ids in the batch",
    "valid/auc": "validation AUC",
    "valid/logloss": "validation logloss, nats",
}


def _clicks(found: Asked) -> Iterator[Html]:
    if not found.clicks:
        return
    rocs = {name: one.roc for name, one in found.clicks.items() if one.roc is not None}
    drawn = []
    if rocs:
        svg = figures.curves(rocs, "false positive rate", "true positive rate", diagonal=True)
        areas = "; ".join(f"{name} {found.clicks[name].auc:.4f}" for name in rocs)
        drawn.append(page.figure(svg, "ROC on the test part", f"Area under the curve, over all rows: {areas}."))
    svg = figures.calibration({name: one.calibration for name, one in found.clicks.items()})
    errors = "; ".join(f"{name} {one.calibration.ece:.4f}" for name, one in found.clicks.items())
    drawn.append(page.figure(svg, "Calibration on the test part", f"15 bins; expected calibration error: {errors}."))
    yield page.figures(*drawn)
    for name, one in found.clicks.items():
        if one.roc is None:
            yield page.note(page.element("b", name), f": the ROC curve is {_ONE_CLASS}.")
    rows = [
        [f"{b / 15:.3f}–{(b + 1) / 15:.3f}", *(cell for one in found.clicks.values() for cell in _bin(one, b))]
        for b in range(15)
    ]
    header = ["probability", *(f"{n}: {what}" for n in found.clicks for what in ("rows", "predicted", "clicked"))]
    yield page.details("The bins in numbers", page.table(header, rows, together=3))


def _bin(one: Clicks, number: int) -> list[str]:
    rows, predicted, clicked = (x[number] for x in one.calibration)
    return [f"{rows:,}", *(f"{x:.4f}" if rows else "–" for x in (predicted, clicked))]


def _cold_start(found: Asked) -> Iterator[Html]:
    drawn, tables = [], []
    for what in ("item", "user"):
        groups = {name: one.frequency[what] for name, one in found.clicks.items() if what in one.frequency}
        if groups:
            svg = figures.frequency(what, groups)
            title = f"Test AUC by how often training saw the {what}"
            drawn.append(page.figure(svg, title, "Few rows make a noisy AUC: see their number below."))
            bins = next(iter(groups.values()))
            counted = {f"test rows of {name}": group for name, group in groups.items()}
            if len({tuple(one.rows for one in group) for group in groups.values()}) == 1:
                counted = {"test rows": bins}
            rows = [
                [
                    one.name,
                    *(f"{group[n].rows:,}" for group in counted.values()),
                    *(_auc(group[n]) for group in groups.values()),
                ]
                for n, one in enumerate(bins)
            ]
            tables.append(page.table((f"training rows of the {what}", *counted, *groups), rows, title))
    if drawn:
        yield page.figures(*drawn)
        yield from tables
    elif found.clicks:
        yield page.note("The datasets tell neither users nor items apart, so there is nothing to say on cold start.")


def _auc(one: Bin) -> str:
    return "no rows" if not one.rows else _ONE_CLASS if math.isnan(one.auc) else f"{one.auc:.4f}"


def _fusion(found: Asked) -> Iterator[Html]:
    fused = {name: one.fused for name, one in found.clicks.items() if one.fused is not None}
    if not fused:
        return
    yield page.paragraph("The joint logit is α · logit of the CTR tower + (1 − α) · logit of the text tower.")
    rows = []
    for name, one in fused.items():
        alpha = f"{one.alpha:.4f}"
        if one.spread is not None:
            alpha += f" on average, {one.spread[0]:.4f} to {one.spread[1]:.4f} for nine rows in ten"
        best = np.nanargmax(one.mixtures.y) if np.isfinite(one.mixtures.y).any() else None
        at = ["undefined (one class)"] * 3
        if best is not None:
            alone = (float(np.interp(x, *one.mixtures)) for x in (0, 1))
            at = [*(f"{x:.4f}" for x in alone), f"{one.mixtures.x[best]:.2f}"]
        rows.append([name, one.kind, alpha, _number(one.mixed), *at])
    header = ("run", "fusion", "α", "AUC as mixed", "text tower alone", "CTR tower alone", "α of the highest AUC")
    yield page.table(header, rows, "On validation rows")
    drawable = {name: one for name, one in fused.items() if np.isfinite(one.mixtures.y).any()}
    if drawable:
        svg = figures.fused(drawable)
        caption = (
            "The logits of both towers of the finished run, mixed anew, on "
            f"{max(one.rows for one in drawable.values()):,} validation rows; the point is the run's own α."
        )
        yield page.figures(page.figure(svg, "Validation AUC over α", caption))


def _number(value: float) -> str:
    return _ONE_CLASS if math.isnan(value) else f"{value:.4f}"


def _alignment(found: Asked) -> Iterator[Html]:
    for name, aligned in found.aligned.items():
        if len(found.aligned) > 1:
            yield page.heading(name)
        if aligned.after is None:
            yield page.note(
                page.element("b", name), " was pretrained without ICL, so no space holds both views of a row."
            )
            continue
        yield page.paragraph(
            f"Step {aligned.step:,}, on {aligned.rows:,} validation rows, dropout off. Every row is looked for among "
            "all of them by its other view; a row that is equal in every field counts as found."
        )
        views = {"before": aligned.before, "after": aligned.after}
        rows = []
        for when, one in views.items():
            if one is not None:
                there, back = aligned.retrieval(one)
                rows.append([f"{when}: ids find text", *_ranks(there)])
                rows.append([f"{when}: text finds ids", *_ranks(back)])
        chance = (measures.chance_at(aligned.same, k) for k in (1, 5, 10))
        rows.append(["by chance", *(f"{x:.2%}" for x in chance), "–"])
        yield page.table(("retrieval", "@1", "@5", "@10", "mean 1 / rank"), rows)
        drawn = []
        for when, one in views.items():
            if one is not None:
                caption = (
                    "Of up to 64 rows, the softmax over the texts of these. A bright diagonal: rows are most like "
                    "their own text."
                )
                drawn.append(page.figure(figures.similarity(one), f"Similarities {when} pretraining", caption))
        for when, one in views.items():
            if one is not None:
                flat, share = measures.principal_plane(np.concatenate([one.ctr, one.text]))
                half = len(one.ctr)
                caption = (
                    f"Two principal components of both views together, {share:.0%} of the variance; strokes tie the "
                    "two views of a row."
                )
                svg = figures.plane(flat[:half], flat[half:])
                drawn.append(page.figure(svg, f"Both views {when} pretraining", caption))
        yield page.figures(*drawn)
        if aligned.before is None:
            yield page.note(f"What the pretraining started from cannot be made again: {aligned.why_not}")


def _ranks(ranks: Ranks) -> list[str]:
    return [*(f"{x:.2%}" for x in (ranks.first, ranks.in_five, ranks.in_ten)), f"{ranks.reciprocal:.4f}"]


def _recovery(found: Asked) -> Iterator[Html]:
    shown = {name: aligned for name, aligned in found.aligned.items() if aligned.recovery}
    for name, aligned in shown.items():
        if len(shown) > 1:
            yield page.heading(name)
        yield page.paragraph(
            f"Fields of {aligned.rows:,} validation rows are hidden as in pretraining, {aligned.passes} times over, "
            "and recovered. Helped: by the other tower, as in pretraining. Alone: the other tower is shown the row "
            "with every field masked. Values that training never saw are left out of MTM."
        )
        drawn, tables = [], []
        text = [one for one in aligned.recovery if one.text]
        if text:
            groups = _groups(
                {
                    how: [one.text[how].accuracy if how in one.text else math.nan for one in text]
                    for how in alignment.HELPS
                }
            )
            svg = figures.bars([one.name for one in text], groups, "hidden tokens recovered, share", end=1)
            drawn.append(page.figure(svg, "MLM by field"))
            rows = [[one.name, *_tokens(one)] for one in text]
            tables.append(page.table(("MLM: field", "hidden tokens", "helped", "alone"), rows))
        table = [one for one in aligned.recovery if any(isinstance(x, Ranks) for x in one.table.values())]
        if table:
            groups = _groups({how: [_first(one, how) for one in table] for how in alignment.HELPS})
            marks = [one.most_frequent for one in table]
            svg = figures.bars(
                [one.name for one in table], groups, "true value ranked first, share", marks=marks, end=1
            )
            caption = (
                "Stroke: how often the field's most frequent value of training would be right, of rows whose value "
                "training knew."
            )
            drawn.append(page.figure(svg, "MTM by field", caption))
            rows = [row for one in table for row in _mtm_rows(one)]
            header = ("MTM: field", "hidden", "@1", "@5", "@10", "mean 1 / rank", "most frequent")
            tables.append(page.table(header, rows))
        detected = [row for one in aligned.recovery for row in _detection_rows(one)]
        if detected:
            tables.append(page.table(("RFD: field", "replaced", "found", "false alarms"), detected))
        if drawn:
            yield page.figures(*drawn)
        yield from tables


def _groups(groups: dict[str, list[float]]) -> dict[str, list[float]]:
    """Without what no field has."""
    return {name: values for name, values in groups.items() if not all(map(math.isnan, values))}


def _tokens(one: Recovery) -> list[str]:
    count = max(tokens.tokens for tokens in one.text.values())
    return [f"{count:,}", *(f"{one.text[how].accuracy:.1%}" if how in one.text else "–" for how in alignment.HELPS)]


def _first(one: Recovery, how: str) -> float:
    ranks = one.table.get(how)
    return ranks.first if isinstance(ranks, Ranks) else math.nan


def _mtm_rows(one: Recovery) -> Iterator[list[str]]:
    for how, ranks in one.table.items():
        if isinstance(ranks, Ranks):
            shares = (f"{x:.1%}" for x in (ranks.first, ranks.in_five, ranks.in_ten))
            frequent = "–" if math.isnan(one.most_frequent) else f"{one.most_frequent:.1%}"
            yield [f"{one.name}, {how}", f"{ranks.rows:,}", *shares, f"{ranks.reciprocal:.3f}", frequent]


def _detection_rows(one: Recovery) -> Iterator[list[str]]:
    for how, found in one.table.items():
        if isinstance(found, Detection):
            yield [f"{one.name}, {how}", f"{found.rows:,}", f"{found.found:.1%}", f"{found.false_alarm:.1%}"]


def _cards(found: Asked) -> Iterator[Html]:
    for data in found.data.values():
        schema = data.schema
        if len(found.data) > 1:
            names = [run.name for run in found.runs if run.run.schema == schema]
            yield page.heading(f"Of {', '.join(names)}")
        entities = ", ".join(f"{what}: {name}" for what, name in schema.entities.items()) or "none"
        linked = "; ".join(" + ".join(group) for group in schema.linked) or "none"
        yield page.paragraph(
            f"Source {schema.source}, protocol {schema.protocol}. Users and items: {entities}. Linked fields: {linked}."
        )
        rows = [
            [
                name,
                f"{part.rows:,}",
                f"{part.positives:,}",
                f"{part.positives / part.labelled:.2%}",
                part.hash[:12] or "–",
            ]
            for name, part in ((name, schema.splits[name]) for name in SPLITS)
        ]
        yield page.table(("split", "rows", "positive", "share", "hash of its rows"), rows)
        alone = [data.alone.get(name, math.nan) for name in schema.names]
        fields = [
            [
                one.name,
                one.kind,
                f"{one.size - 1:,}" if one.kind != "text" else "–",
                f"{one.slots}",
                f"{one.max_tokens}",
                "–" if not data.alone else _number(auc),
            ]
            for one, auc in zip(schema.fields, alone, strict=True)
        ]
        header = ("field", "kind", "vocabulary", "values a row", "tokens a value, at most", "validation AUC alone")
        yield page.table(header, fields, f"{schema.num_ids:,} feature ids in one table")
        text = schema.text
        drawn = []
        if any(part.prompts for part in schema.splits.values()):
            caption = (
                f"{schema.mean_tokens:.1f} tokens on average, {text.length} at most; {cut_line(schema)}. "
                f"{text.vocab_size:,} different tokens ({text.tokenizer})."
            )
            shares = np.array(schema.prompts) / sum(schema.prompts)
            drawn.append(page.figure(figures.histogram(shares), "Length of prompts", caption))
        if data.alone and not all(map(math.isnan, alone)):
            caption = "A value's score is the mean label that it has in training, with no model at all."
            svg = figures.bars(schema.names, {"AUC": alone}, "validation AUC of one field alone", start=0.5, end=1)
            drawn.append(page.figure(svg, "What one field alone tells", caption))
        yield page.figures(*drawn)
        yield page.heading("Leaks suspected")
        if not data.findings:
            yield page.note(f"Not looked for: {data.why}")
            continue
        suspected = [one for one in data.findings if one.suspected]
        if suspected:
            yield page.note(f"{len(suspected)} of {len(data.findings)} checks suspect a leak.")
        else:
            yield page.paragraph(page.element("strong", "None found by these checks."))
        checks = [
            [one.question, page.element("span", one.answer, class_="suspected") if one.suspected else one.answer]
            for one in data.findings
        ]
        yield page.table(("check", "answer"), checks, prose=True)


def _configuration(found: Asked) -> Iterator[Html]:
    if not found.runs:
        return
    runs = [
        [run.name, run.what, run.run.origin.init_from or "nothing", f"{run.run.config.seed}", run.state]
        for run in found.runs
    ]
    yield page.table(("run", "what", "starts from", "seed", "state"), runs, prose=True)
    flat = {run.name: _settings(run) for run in found.runs}
    if len(flat) > 1:
        names = dict.fromkeys(name for values in flat.values() for name in values)
        differ = [name for name in names if len({_plain(values.get(name)) for values in flat.values()}) > 1]
        if differ:
            rows = [[name, *(_plain(values.get(name)) for values in flat.values())] for name in differ]
            yield page.table(("value", *flat), rows, "What differs between the runs")
        else:
            yield page.paragraph("Nothing differs between the runs.")
    for run in found.runs:
        changed = run.run.config.differences(Config())
        rows = [[name, _plain(mine), _plain(default)] for name, (mine, default) in changed.items()]
        body = page.table(("value", "here", "default"), rows, prose=True)
        yield page.details(f"{run.name}: {len(rows)} values that differ from the defaults", body)


def _settings(run: Logged) -> dict[str, Any]:
    """What a run was told, by name."""
    origin = run.run.origin
    return {
        "stage": origin.stage,
        "--strategy": origin.strategy,
        "--init-from": origin.init_from,
        **run.run.config.flat(),
    }


def _plain(value: Any) -> str:
    """A config value in few words."""
    if value is None:
        return "none"
    if isinstance(value, tuple | list) and value and isinstance(value[0], dict):  # fields
        return "; ".join(_plain_field(one) for one in value)
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _plain_field(one: Mapping[str, Any]) -> str:
    named = f" as {one['name']}" if one["name"] else ""
    return one["column"] + named + (f" ({one['kind']})" if one["kind"] != "category" else "")


def _machine(found: Asked, price: float | None) -> Iterator[Html]:
    if not found.runs:
        return
    machines = {run.name: _machine_of(run) for run in found.runs}
    named = dict.fromkeys(name for machine in machines.values() for name in machine)
    facts = [name for name in named if name not in ("seconds", "resumed_at")]
    rows = [[name, *(str(machine.get(name, "–")) for machine in machines.values())] for name in facts]
    rates = [run.series("rows_per_s")[1] for run in found.runs]
    rows.append(["training rows a second, median", *(f"{statistics.median(r):,.0f}" if r else "–" for r in rates)])
    rows.append(["steps", *(f"{run.steps:,}" for run in found.runs)])
    spent = [_spent(run, machines[run.name]) for run in found.runs]
    rows.append(["time", *(_duration(*one) for one in spent)])
    if price is not None:
        costs = [price * seconds / 3600 for seconds, _ in spent]
        rows.append([f"cost at ${price:g} an hour", *("–" if math.isnan(x) else _dollars(x) for x in costs)])
    yield page.table(("", *machines), rows)
    known = [seconds for seconds, _ in spent if not math.isnan(seconds)]
    if known and len(spent) > 1:
        total = f"Together {_duration(sum(known), True)}"
        if price is not None:
            total += f", {_dollars(price * sum(known) / 3600)}"
        yield page.paragraph(f"{total}.")
    if not all(exact for seconds, exact in spent if not math.isnan(seconds)):
        yield page.paragraph(
            "≈: the time of the whole run is not known, since it is not finished or was resumed; this is that of the "
            "updates alone by the logged rows a second, evaluations and start left out."
        )
    if price is None:
        yield page.paragraph("With --price US dollars an hour, this table also says what the runs cost.")
    else:
        yield page.paragraph("Cost is price × time of the run; a machine that waits, disks and traffic cost besides.")


def _machine_of(run: Logged) -> dict[str, Any]:
    machine = (run.result or {}).get("machine")
    return machine if isinstance(machine, dict) else {}


def _spent(run: Logged, machine: Mapping[str, Any]) -> tuple[float, bool]:
    """Seconds, and whether they were measured as such."""
    seconds = machine.get("seconds")
    if isinstance(seconds, int | float) and not machine.get("resumed_at"):
        return float(seconds), True
    return run.training_seconds, False


def _duration(seconds: float, exact: bool) -> str:
    if math.isnan(seconds):
        return "–"
    about = "" if exact else "≈ "
    if seconds < 120:
        return f"{about}{seconds:.0f} s"
    return f"{about}{seconds / 60:.1f} min" if seconds < 7200 else f"{about}{seconds / 3600:.1f} h"


def _dollars(value: float) -> str:
    return f"${value:,.2f}" if value >= 0.1 else f"${value:.4f}"
