"""The table, the headline and the page of a poisoning experiment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from raymotion import records, storage
from raymotion.learning.metrics.multilabel import interval_text, metric_text, metric_title
from raymotion.learning.significance import FEWEST_IMAGES, FEWEST_SEEDS, Gain, Headline
from raymotion.report.plots import BAR, MARK, data_address, new_figure, png, style_axes
from raymotion.report.rendering import template
from raymotion.robustness.pixels import png_bytes
from raymotion.text_table import table_lines
from raymotion.version import __version__

if TYPE_CHECKING:
    from raymotion.robustness.poison import Poisoning, Row
    from raymotion.robustness.poison_scores import Compared

# Pictures on the page, of the highest rate and the first seed, and the side in pixels that small ones are shown at.
PICTURES_SHOWN, SHOWN_SIDE = 8, 144
DEFENCE_HEADS = ("rate", "poisons", "defence", "marked", "recall", "95 % interval", "of a random pick", "precision")


def verdict(result: Poisoning) -> Headline:
    """Returns the headline: whether the attacker gets what he wants, and what the model lost."""
    if not result.better_than_constant:
        return Headline(
            "unsure",
            f"Nothing is shown: the clean model is not shown to beat the best constant answer ({_title(result)} "
            f"{np.mean(result.clean.metric.clean):.4f} against {metric_text(result.majority)}), so no difference here "
            "means anything.",
        )
    last = result.poisoned[-1]
    works = [row for row in result.poisoned if row.works]
    gains = [row for row in result.poisoned if row.gains]
    harms = [row for row in result.poisoned if row.metric.verdict == "better"]
    if works:
        return Headline("bad", f"The attack works {_where(result, works)}: {_figures(result, works[-1])}")
    if result.attack.seeds < FEWEST_SEEDS:
        return Headline("unsure", f"With fewer than {FEWEST_SEEDS} seeds nothing is shown: {_figures(result, last)}")
    if last.success.groups < FEWEST_IMAGES:
        return Headline(
            "unsure",
            f"With fewer than {FEWEST_IMAGES} independent test samples that may be mistaken nothing is shown: "
            f"{_figures(result, last)}",
        )
    if gains:  # of a trigger: drift to the target label
        return Headline(
            "bad",
            f"No backdoor is shown: {_where(result, gains)} {result.attack.target} is said more often than by the "
            f"clean model, but not shown to be said more often with the patch than without it: "
            f"{_figures(result, gains[-1])}",
        )
    if harms:
        return Headline(
            "bad",
            f"The attack is not shown to reach its aim, but it does harm {_where(result, harms)}: "
            f"{_figures(result, harms[-1])}",
        )
    return Headline("unsure", f"The attack is not shown to work: {_figures(result, last)}")


def _where(result: Poisoning, rows: Sequence[Row]) -> str:
    """Names the rates of some rows."""
    if list(rows) == result.poisoned[-len(rows) :]:
        return f"at {_rate(rows[0])}" if len(rows) == 1 else f"from {_rate(rows[0])} on"
    return f"at {', '.join(_rate(row) for row in rows)}"


def _figures(result: Poisoning, row: Row) -> str:
    """Says how often the attacker got what he wanted at a rate, against what, and what the model lost."""
    against = f"{_percent(row.success.clean)} by the clean model"
    if row.without_patch is not None:
        against += f" and {_percent(row.without_patch.clean)} without the patch"
    ends = interval_text(row.metric.difference.low, row.metric.difference.high)
    lost = f"{_title(result)} falls by {row.metric.change:.4f} (95 % interval {ends})"
    if row.metric.change <= 0:
        lost = f"{_title(result)} does not fall ({0.0 - row.metric.change:+.4f})"
    return (
        f"{_wanted(result)} in {_percent(row.success.poisoned)} of cases at a rate of {_rate(row)}, against {against}. "
        f"{lost[0].upper() + lost[1:]}."
    )


def poison_lines(result: Poisoning) -> list[str]:
    """Formats headline, tables and explanations for a terminal."""
    lines = [verdict(result).text, "", *table_lines(heads(result), table_rows(result))]
    if concerned := [row for row in class_rows(result) if row[0].endswith((" (target)", " (source)"))]:
        lines += ["", *table_lines((_class_title(result).lower(), *class_heads(result)[1:]), concerned)]
    if defences := defence_rows(result):
        lines += ["", *table_lines(DEFENCE_HEADS, defences, left=(0, 2))]
    lines += ["", *notes(result)]
    return [*lines, f"page: {storage.join(result.folder, 'poison.html')}"]


def heads(result: Poisoning) -> tuple[str, ...]:
    """Returns the heads of the main table."""
    more: tuple[str, ...] = ()
    if result.clean.without_patch is not None:
        more = ("without the patch", "gain over without", "95 % interval")
    return (
        "rate", "poisons", _title(result), "drop", "95 % interval", _success_title(result), "gain over clean",
        "95 % interval", *more,
    )  # fmt: skip


def table_rows(result: Poisoning) -> list[tuple[str, ...]]:
    """Returns the texts of the main table, a row for each rate."""
    rows: list[tuple[str, ...]] = []
    for row in result.rows:
        first = row.rate == 0
        more: tuple[str, ...] = ()
        if row.without_patch is not None:
            more = (_cell(row.without_patch.clean), *_difference(row.without_patch))
        rows.append(
            (
                "clean" if first else _rate(row), f"{row.poisons:,}", _cell(row.metric.poisoned),
                *(("", "") if first else _difference(row.metric)), _cell(row.success.poisoned),
                *(("", "") if first else _difference(row.success)), *more,
            )
        )  # fmt: skip
    return rows


def class_heads(result: Poisoning) -> tuple[str, ...]:
    """Returns the heads of the table of labels."""
    return ("label", "test samples", "clean", *(f"drop at {_rate(row)}" for row in result.poisoned))


def class_rows(result: Poisoning) -> list[tuple[str, ...]]:
    """Returns the texts of the table of labels, target and source first."""
    rows = []
    names = [name for name in result.labels if name in result.clean.classes]
    roles = {result.attack.target: "target", result.attack.source: "source"}
    for name in sorted(names, key=lambda own: own not in roles):
        cells = []
        for row in result.poisoned:
            own = row.classes[name]
            low, high = own.difference.low, own.difference.high
            ends = "not known" if low is None or high is None else f"{low:+.3f} to {high:+.3f}"
            cells.append(f"{own.change:+.3f} ({'–' if _never_differs(own) else ends})")
        marked = f"{name} ({roles[name]})" if name in roles else name
        rows.append(
            (
                marked,
                str(result.clean.classes[name].samples),
                f"{np.mean(result.clean.classes[name].clean):.3f}",
                *cells,
            )
        )
    return rows


def defence_rows(result: Poisoning) -> list[tuple[str, ...]]:
    """Returns the texts of the table of defences; a row for each rate and defence."""
    rows: list[tuple[str, ...]] = []
    for row in result.rows:
        for name, own in row.defences.items():
            known = [value for value in own.precision if value is not None]
            rows.append(
                (
                    "clean" if not row.rate else _rate(row), f"{own.poisons:,}", name, f"{np.mean(own.flagged):.1f}",
                    *(
                        ("", "", "") if not own.poisons
                        else (f"{np.mean(own.recall):.3f}", interval_text(own.low, own.high), f"{own.random:.3f}")
                    ),
                    f"{np.mean(known):.3f} (chance {own.poisons / own.samples:.3f})" if known and own.poisons else "",
                )
            )  # fmt: skip
    return rows


def notes(result: Poisoning) -> list[str]:
    """Explains the figures."""
    seeds, attack = result.attack.seeds, result.attack
    lines = [
        f"mean (sd) over {seeds} seed{'' if seeds == 1 else 's'}; all models are scored on the same "
        f"{result.test_samples:,} test samples; intervals are over images, paired with the clean model of the same "
        "seed, of the mean over seeds (–: the same in every resample). Each rate is judged by itself.",
        f"A rate is a share of the {result.train_samples:,} training samples. Poisons replace them: every model learns "
        "from equally many. Validation and test have none.",
    ]
    if result.majority is not None:
        lines.append(f"The best constant answer has {_title(result)} {metric_text(result.majority)}.")
    if attack.attack == "trigger":
        lines.append(
            f"Success: the share of {_cases(result)} without the label {attack.target} that get it once the patch is "
            "in them. Without the patch: the same models, the same pictures. A backdoor is shown where success lies "
            f"above both that of the clean models and that without the patch. {_prior(result)}"
        )
    elif attack.attack == "flip":
        of = f"with the label {attack.source}" if attack.source else f"without the label {attack.target}"
        replaced = f"the label {attack.source}" if attack.source else "all labels of a sample"
        lines.append(
            f"Success: the share of {_cases(result)} {of} that get {attack.target}. In poisons it replaces {replaced}. "
            f"{_prior(result)}"
        )
    else:
        lines.append(
            f"Success: attacked test pictures ({len(result.victims)}) that get the label of their poisons; those that "
            "no poison of a low rate is made for count too. Chance for one of equally likely labels: "
            f"{1 / len(result.labels):.3f}."
        )
        if (moved := result.poisoned[-1].distance) is not None:
            lines.append(
                f"Half of the poisons as written are at {moved:.0%} or less of the distance of their base to the "
                f"attacked picture's features; changes are at most {attack.max_change} of 255 levels, in at most "
                f"{attack.max_pixels:.0%} of the pixels."
            )
    if any(row.defences for row in result.rows):
        lines.append(
            "Label issues: cleanlab, on probabilities out of fold of a logistic regression on the features of the "
            "poisoned model's last layer. Activation clustering: the smaller of two clusters of a label's features; it "
            "finds nothing where poisons are half of a label or more. Clusters that validation lacks: those with fewer "
            "of the label's validation samples than their size leads to expect. "
            "Recall: share of the poisons that is marked; precision: share of the marked that are poisons."
        )
    lines.append(
        f"Labels with fewer than {FEWEST_IMAGES} independent test samples (groups) are left out of the table of labels."
    )
    return lines


def write_page(result: Poisoning) -> None:
    """Writes poison.html into the experiment's folder."""
    first, attack = verdict(result), result.attack
    last = result.poisoned[-1]
    page = template("poison.html.j2").render(
        state=first.state,
        headline=first.text,
        remarks=[],
        notices=[],
        recipe=result.recipe,
        attack=attack.attack,
        key_figures=[
            (f"success at {_rate(last)}", f"{np.mean(last.success.poisoned):.3f}"),
            ("success, clean model", f"{np.mean(last.success.clean):.3f}"),
            *(
                [] if last.without_patch is None
                else [("without the patch", f"{np.mean(last.without_patch.clean):.3f}")]
            ),
            (f"{_title(result)}, clean", f"{np.mean(last.metric.clean):.3f}"),
            (f"{_title(result)} at {_rate(last)}", f"{np.mean(last.metric.poisoned):.3f}"),
            ("best constant", metric_text(result.majority)),
            ("seeds", str(attack.seeds)),
        ],
        facts=[
            ("Kind", result.recipe), ("Samples", result.settings["data"]["samples"]), ("Attack", attack.attack),
            ("Target", attack.target or "a label for each attacked picture"),
            ("Source", attack.source or "any other label"),
        ],
        heads=heads(result),
        rows=table_rows(result),
        notes=notes(result),
        figure=data_address(_figure(result)),
        class_title=_class_title(result),
        class_heads=class_heads(result),
        class_rows=class_rows(result),
        defence_heads=DEFENCE_HEADS,
        defence_rows=defence_rows(result),
        victim_rows=[(own["sample_id"], ", ".join(own["labels"]), own["said"]) for own in result.victims],
        pictures=_pictures(result),
        settings=json.dumps(result.settings, indent=2, ensure_ascii=False),
        provenance=[
            ("Fingerprint of the data", result.settings["data_fingerprint"]),
            ("Version of raymotion", __version__),
        ],
    )  # fmt: skip
    storage.write_text(storage.join(result.folder, "poison.html"), page)


def _figure(result: Poisoning) -> bytes:
    """Draws success and main metric by rate, one dot for each seed."""
    figure = new_figure(7.2, 2.9)
    panels = figure.subplots(1, 2)
    places = range(len(result.rows))
    names = ["clean" if not row.rate else _rate(row) for row in result.rows]
    for axes, title, colour, own in (
        (panels[0], _success_title(result), MARK, [row.success for row in result.rows]),
        (panels[1], _title(result), BAR, [row.metric for row in result.rows]),
    ):
        for place, compared in zip(places, own, strict=True):
            axes.plot([place] * len(compared.poisoned), compared.poisoned, "o", color=colour, alpha=0.5, markersize=4)
        axes.plot(places, [np.mean(compared.poisoned) for compared in own], color=colour, linewidth=1.6)
        axes.set_xticks(list(places), names)
        axes.set(ylim=(0, 1.04), title=title)
        axes.title.set_fontsize(10)
        style_axes(axes)
    if result.majority is not None:
        panels[1].axhline(result.majority, color=MARK, linestyle=":", linewidth=1.2)
    return png(figure)


def _pictures(result: Poisoning) -> list[dict[str, str]]:
    """Returns some poisons of the highest rate: the picture before, after, and the change made visible."""
    from raymotion.robustness.poison import Run
    from raymotion.robustness.poison_rows import PICTURES, POISONS, decoded
    from raymotion.robustness.poison_settings import rate_name

    run = Run(result.poisoned[-1].rate, 0)
    folder = storage.join(result.folder, rate_name(run.rate), f"seed{run.seed}")
    shown: list[dict[str, str]] = []
    for own in records.read_record(storage.join(folder, POISONS))["poisons"]:
        if own["picture"] is None or len(shown) == PICTURES_SHOWN:
            break
        before, after = decoded(own["base"]), decoded(storage.join(folder, PICTURES, own["picture"]))
        if before is None or after is None:
            continue
        change = np.abs(after.astype(np.float32) - before)
        visible = (255 - 255 * change / max(1.0, float(change.max()))).astype(np.uint8)
        said = ", ".join(own["labels"])
        if own["labels"] != own["labels_before"]:
            said = f"{', '.join(own['labels_before'])} → {said}"
        told = f"{said}; {own['changed']:,} of {own['pixels']:,} pixels, up to {own['largest']} levels"
        if own["distance"] is not None and own["distance_before"]:
            told += f"; features at {own['distance'] / own['distance_before']:.0%} of the distance to {own['victim']}"
        images = {"before": before, "after": after, "change": visible}
        shown.append(
            {"id": own["sample_id"], "told": told, **{name: _thumbnail(each) for name, each in images.items()}}
        )
    return shown


def _thumbnail(pixels: np.ndarray) -> str:
    """Returns a picture, uint8 (height, width, 3), as a data URL; small ones are enlarged without smoothing."""
    from PIL import Image

    image = Image.fromarray(pixels)
    longest = max(image.size)
    width, height = (max(1, round(side * SHOWN_SIDE / longest)) for side in image.size)
    how = Image.Resampling.NEAREST if longest < SHOWN_SIDE else Image.Resampling.BILINEAR
    return data_address(png_bytes(np.asarray(image.resize((width, height), how))))


def _wanted(result: Poisoning) -> str:
    attack = result.attack
    if attack.attack == "trigger":
        return f"pictures with the patch get {attack.target}"
    if attack.attack == "flip":
        return f"samples of {attack.source or 'other labels'} get {attack.target}"
    return "attacked pictures get the label of their poisons"


def _success_title(result: Poisoning) -> str:
    return {"trigger": "success with the patch", "flip": "success", "collision": "attacked pictures mistaken"}[
        result.attack.attack
    ]


def _title(result: Poisoning) -> str:
    return metric_title(result.metric).lower() if result.metric == "accuracy" else metric_title(result.metric)


def _class_title(result: Poisoning) -> str:
    return "Recall" if result.metric == "accuracy" else "Average precision"


def _cases(result: Poisoning) -> str:
    """Says how many test samples the success is of, and of how many images if these are fewer."""
    own = result.clean.success
    groups = "" if own.groups == own.samples else f" ({own.groups:,} images)"
    return f"{own.samples:,} test samples{groups}"


def _prior(result: Poisoning) -> str:
    return "" if result.prior is None else f"{result.prior:.1%} of the training samples have it."


def _rate(row: Row) -> str:
    return f"{100 * row.rate:g} %"


def _percent(values: Sequence[float]) -> str:
    return f"{100 * float(np.mean(values)):.0f} %"


def _cell(values: Sequence[float]) -> str:
    return f"{np.mean(values):.4f}" + (f" ({np.std(values, ddof=1):.4f})" if len(values) > 1 else "")


def _difference(own: Compared) -> tuple[str, str]:
    gain: Gain = own.difference
    return f"{own.change:+.4f}", "–" if _never_differs(own) else interval_text(gain.low, gain.high)


def _never_differs(own: Compared) -> bool:
    """Whether a difference is 0 in every resample: that is no interval, and no proof that there is none."""
    return own.difference.low == own.difference.high == 0.0
