"""The page of a pixel attack, one HTML file without scripts or network access, and its text version for a terminal."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from raymotion import storage
from raymotion.batch.label_dataset import read_parts
from raymotion.folders import outputs
from raymotion.learning.significance import FEWEST_IMAGES, Headline, Verdict, headline, voids_results
from raymotion.report.plots import ClassLine, class_figure, data_address
from raymotion.report.rendering import percent, template
from raymotion.robustness.pixels import read_png
from raymotion.text_table import table_lines

if TYPE_CHECKING:
    from raymotion.robustness.pixel_attack import PixelAttackSettings

PAGE = "attack.html"
ATTACKS = "attacks"
NAMES = {"evolution": "differential evolution", "random": "random pixels", "gradients": "gradients (reference)"}
HEADS = (
    "pixels", "method", "misled", "95 % interval", "beyond random", "95 % interval", "verdict", "queries, median",
    "95 % interval", "queries, mean", "all", "{metric} after", "drop", "95 % interval", "drop beyond random",
    "95 % interval",
)  # fmt: skip
# Columns with room on a terminal.
ON_TERMINAL = (0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13)
# Of the gallery: longest side of a picture, pixels around a changed one, and how much they are magnified.
SIDE, AROUND, MAGNIFIED = 320, 5, 8


@dataclass(frozen=True)
class Misled:
    """A misleading picture as the gallery shows it.

    Attributes:
        picture: data URL, with the changed pixels circled.
        close: (text, before, after) of each changed pixel: data URLs of its surroundings, magnified.
    """

    sample_id: str
    why: str
    picture: str
    close: list[tuple[str, str, str]]
    before: str
    after: str


def write(out: str, record: Mapping[str, Any], settings: PixelAttackSettings) -> None:
    """Writes attack.html into the folder of an attack.

    Raises:
        InputError: a file of this name is something else.
    """
    path = storage.join(out, PAGE)
    outputs.require_replaceable(path, "the page of an attack", outputs.is_page)
    storage.write_text(path, render(record, settings, gallery(out, settings.examples)))


def verdict(record: Mapping[str, Any]) -> Headline:
    """Returns the headline of page and terminal: how many pictures are misled, and whether random pixels do as well."""
    found = [line for line in record["lines"] if line["method"] == "evolution"]
    counted = record["counted"]
    if not counted:
        return Headline("unsure", "No picture counts: the model had none right before.")
    if not any(line["successes"] for line in record["lines"] if line["method"] != "gradients"):
        most, highest = max(line["pixels"] for line in found), [line["rate"]["high"] for line in found]
        ends = "" if None in highest else f" (95 % interval up to {percent(max(highest))})"
        text = (
            f"None of {counted:,} pictures that the model had right is misled by up to {most} pixels, in up to "
            f"{record['settings']['queries']:,} queries each{ends}."
        )
        known = max((line["successes"] for line in record["lines"] if line["method"] == "gradients"), default=0)
        return Headline("unsure", f"{text} Whoever knows the gradients misleads {known:,}." if known else text)
    listed = ", ".join(
        f"{_listed([str(line['pixels'])])} {'misleads' if line['pixels'] == 1 else 'mislead'} "
        f"{percent(line['rate']['value'])}"
        for line in found
    )
    sentence = f"Of {counted:,} pictures that the model had right, {listed}."
    verdicts: dict[str, Verdict] = {str(line["pixels"]): line["verdict"] for line in found}
    better, worse = ([k for k, own in verdicts.items() if own == wanted] for wanted in ("better", "worse"))
    if all(own == "untested" for own in verdicts.values()):  # of images, of which each may have several pictures
        sentence += f" They are of fewer than {FEWEST_IMAGES} images: too few to say more."
    elif better and worse:
        sentence += f" Random pixels mislead fewer at {_listed(better)}, and more at {_listed(worse)}."
    elif better:
        sentence += f" Random pixels mislead fewer, at {_listed(better)}."
    elif worse:
        sentence += f" Random pixels mislead more, at {_listed(worse)}: the search is not worth its queries there."
    else:
        sentence += " It is not shown that random pixels mislead fewer."
    # A model that is hard to mislead is no fault of the attack, so no verdict makes the page bad.
    calm: dict[str, Verdict] = {name: "unclear" if own == "worse" else own for name, own in verdicts.items()}
    warnings = [own for own in (record["caution"], _no_skill(record)) if own]
    warnings += filter(voids_results, record["notices"])
    return headline(calm, dict.fromkeys(("good", "unsure", "bad"), sentence), warnings=warnings)


def _no_skill(record: Mapping[str, Any]) -> str | None:
    """Says it if the model is not shown to beat a constant or random answer: what it had right may be luck."""
    before, gallery, name = record["before"], record["gallery"], record["metric"]
    baseline = record["constant"] if gallery is None else gallery["chance"]
    if baseline is None or before["low"] is None:
        return None
    if before["low"] > baseline if record["higher_is_better"] else before["high"] < baseline:
        return None
    what = "the best constant answer" if gallery is None else "a random order"
    return (
        f"The model is not shown to beat {what} ({name} {_value(before)} against {baseline:.3f}): what it had right "
        "may be luck."
    )


def _listed(pixels: Sequence[str]) -> str:
    """Names some numbers of pixels."""
    return f"{' and '.join(pixels)} {'pixel' if list(pixels) == ['1'] else 'pixels'}"


def table(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns headings and rows of the table of figures, as texts."""
    rows = []
    for line in record["lines"]:
        rows.append(
            [
                str(line["pixels"]), NAMES[line["method"]], f"{line['successes']} of {line['counted']}",
                _interval(line["rate"]), _value(line["gain"], "+.3f"), _interval(line["gain"]), line["verdict"] or "",
                _value(line["queries_median"], ",.0f"), _interval(line["queries_median"], ",.0f"),
                _value(line["queries_mean"], ",.0f"), _value(line["queries"], ",.0f"), _value(line["metric"]),
                _value(line["drop"], "+.3f"), _interval(line["drop"]), _value(line["drop_gain"], "+.3f"),
                _interval(line["drop_gain"]),
            ]
        )  # fmt: skip
    return [head.format(metric=record["metric"]) for head in HEADS], rows


def lines(record: Mapping[str, Any]) -> list[str]:
    """Formats the attack for a terminal: headline, notes, the table of figures."""
    heads, rows = table(record)
    shown = table_lines([heads[i] for i in ON_TERMINAL], [[row[i] for i in ON_TERMINAL] for row in rows], left=(1, 6))
    before = record["before"]
    return [
        verdict(record).text,
        *(f"note: {note}" for note in notes(record)),
        f"{record['metric']} before: {_value(before)} ({_interval(before)}), {record['pictures']:,} pictures"
        + ("" if record["constant"] is None else f"; best constant answer: {record['constant']:.3f}"),
        *([f"not counted: {told}"] if (told := _not_counted(record)) else []),
        "",
        *shown,
        "",
    ]


def notes(record: Mapping[str, Any]) -> list[str]:
    """Returns what a reader has to know: what success is, what restricts the figures."""
    told = [f"Success: {record['objective']['success']}. Counted: {record['objective']['counted']}."]
    if record["caution"]:
        told.append(record["caution"])
    if (warning := _no_skill(record)) is not None:
        told.append(warning)
    told += record["notices"]
    if (gallery := record["gallery"]) is not None:
        told.append(
            f"Each of {gallery['queries']:,} pictures is compared with the same {gallery['captions']:,} captions, in "
            f"the search and in {record['metric']}; by chance {record['metric']} is {gallery['chance']:.3f}."
        )
    if record["no_gradients"]:
        lacking, counted = record["without_gradients"], record["counted"]
        if lacking == counted:
            told.append(f"No reference by gradients: {record['no_gradients']}.")
        else:
            told.append(
                f"The reference by gradients ran on {counted - lacking:,} of {counted:,} counted pictures (of others: "
                f"{record['no_gradients']}). Its figures, and its differences to random pixels, leave the others out."
            )
    return told


def gallery(out: str, most: int) -> list[Misled]:
    """Reads up to `most` misleading pictures, as many of each number of pixels, those of the evolution."""
    columns = [
        "sample_id", "pixels", "method", "success", "queries", "changed", "before", "after"
    ]  # fmt: skip
    parts = [(name, part) for name, part in read_parts(storage.join(out, ATTACKS), columns)]
    whole = pa.concat_tables([part for _, part in parts])
    wanted = whole.filter(
        pc.and_(pc.fill_null(whole.column("success"), False), pc.equal(whole.column("method"), "evolution"))
    ).to_pylist()
    ks = sorted({row["pixels"] for row in wanted})
    chosen: dict[tuple[str, int], dict[str, Any]] = {}
    # In turns, so that each number of pixels is seen, and places that one does not need go to the others.
    queues = [[row for row in wanted if row["pixels"] == k] for k in ks]
    while len(chosen) < most and any(queues):
        for queue in queues:
            if queue and len(chosen) < most:
                row = queue.pop(0)
                chosen[row["sample_id"], row["pixels"]] = row
    pngs = _pngs(out, chosen)
    return [_misled(row, pngs[key]) for key, row in chosen.items()]


def _pngs(out: str, chosen: Mapping[tuple[str, int], Any]) -> dict[tuple[str, int], bytes]:
    found = {}
    for _, part in read_parts(storage.join(out, ATTACKS), ["sample_id", "pixels", "method", "png"]):
        for row in part.filter(pc.fill_null(pc.equal(part.column("method"), "evolution"), False)).to_pylist():
            if (key := (row["sample_id"], row["pixels"])) in chosen:
                found[key] = row["png"]
    return found


def _misled(row: Mapping[str, Any], png: bytes) -> Misled:
    after = read_png(png)
    before = after.copy()
    for one in row["changed"]:
        before[one["y"], one["x"]] = one["was_r"], one["was_g"], one["was_b"]
    close = []
    for one in row["changed"]:
        text = (
            f"({one['x']}, {one['y']}): {one['was_r']} {one['was_g']} {one['was_b']} → {one['r']} {one['g']} {one['b']}"
        )
        close.append((text, _magnified(before, one["x"], one["y"]), _magnified(after, one["x"], one["y"])))
    k = row["pixels"]
    return Misled(
        row["sample_id"], f"{k} pixel{'' if k == 1 else 's'}, {row['queries']:,} queries",
        _circled(after, row["changed"]), close, row["before"], row["after"] or "",
    )  # fmt: skip


def _circled(picture: np.ndarray, changed: Sequence[Mapping[str, int]]) -> str:
    """Returns the picture at the size of the gallery, with a ring around each changed pixel."""
    from PIL import ImageDraw

    image = Image.fromarray(picture)
    scale = SIDE / max(image.size)
    resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), resample)
    draw = ImageDraw.Draw(image)
    for one in changed:
        x, y = (one["x"] + 0.5) * scale, (one["y"] + 0.5) * scale
        for radius, colour in ((11, "black"), (10, "white"), (9, "black")):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour)
    return _address(image)


def _magnified(picture: np.ndarray, x: int, y: int) -> str:
    """Returns the surroundings of a pixel, magnified without smoothing; grey beyond the border."""
    padded = np.pad(picture, ((AROUND, AROUND), (AROUND, AROUND), (0, 0)), constant_values=128)
    part = padded[y : y + 2 * AROUND + 1, x : x + 2 * AROUND + 1]
    return _address(Image.fromarray(part.repeat(MAGNIFIED, axis=0).repeat(MAGNIFIED, axis=1)))


def _address(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return data_address(buffer.getvalue())


def render(record: Mapping[str, Any], settings: PixelAttackSettings, misled: Sequence[Misled]) -> str:
    """Renders the page from the record of attack.json and the gallery."""
    first = verdict(record)
    heads, rows = table(record)
    before, samples = record["before"], record["samples"]
    facts = [
        ("Model", f"{record['checkpoint']['path']}, {record['checkpoint']['kind']}"),
        ("Output", record["objective"]["output"]),
        ("Success", record["objective"]["success"]),
        ("Counted", record["objective"]["counted"]),
        ("Samples", f"{samples['path']}, split {samples['split']}"),
        ("Differential evolution", f"{record['search']['evolution']}; population {record['settings']['population']:,}"),
        ("Gradients", record["search"]["gradients"]),
    ]
    figure = data_address(
        class_figure(
            [
                ClassLine(
                    f"{line['pixels']}, {NAMES[line['method']]}",
                    line["rate"]["value"],
                    line["rate"]["low"],
                    line["rate"]["high"],
                    _rate_of_random(line),
                )
                for line in record["lines"]
            ],
            baseline="random pixels",
            value="share of pictures misled, 95 % interval",
        )
    )
    return template("attack.html.j2").render(
        record=record,
        state=first.state,
        headline=first.text,
        remarks=notes(record)[1:],
        notices=[],
        key_figures=[
            ("pictures", f"{record['pictures']:,}"),
            ("right before, attacked", f"{record['counted']:,}"),
            (f"{record['metric']} before", _value(before)),
            ("95 % interval", _interval(before)),
            *([] if record["constant"] is None else [("best constant answer", f"{record['constant']:.3f}")]),
            *(
                []
                if (own := record["gallery"]) is None
                else [("by chance", f"{own['chance']:.3f}"), ("captions", f"{own['captions']:,}")]
            ),
            ("queries, at most", f"{record['settings']['queries']:,}"),
            ("in quarantine", f"{samples['quarantined']:,}"),
        ],
        facts=[*facts, *([("Not counted", told)] if (told := _not_counted(record)) else [])],
        heads=heads,
        rows=rows,
        figure=figure,
        misled=misled,
        settings=json.dumps(settings.model_dump(mode="json"), indent=2, ensure_ascii=False),
        provenance=[
            ("Model fingerprint", record["checkpoint"]["fingerprint"]),
            *((f"Version of {name}", number) for name, number in record["versions"].items()),
        ],
    )


def _rate_of_random(line: Mapping[str, Any]) -> float | None:
    """Returns the rate of random pixels on the pictures of a line."""
    gain, rate = line["gain"], line["rate"]["value"]
    return None if gain is None or gain["value"] is None else rate - gain["value"]


def _not_counted(record: Mapping[str, Any]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in record["not_counted"].items())


def _value(figure: Mapping[str, Any] | None, form: str = ".3f") -> str:
    return "–" if figure is None or figure["value"] is None else format(figure["value"], form)


def _interval(figure: Mapping[str, Any] | None, form: str = ".3f") -> str:
    if figure is None or figure["low"] is None or figure["high"] is None:
        return "–"
    return f"{figure['low']:{form}} to {figure['high']:{form}}"
