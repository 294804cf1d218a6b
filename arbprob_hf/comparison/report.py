"""A comparison as Markdown, as CSV, and as a picture of the runs' validation losses."""

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from ..atomic_write import replacing
from ..data.eval_sets import GAINS, MODES
from ..plotting.curves import draw_comparison
from ..plotting.figures import save_whole
from .compare import Comparison, Figure
from .inputs import read_losses

TABLE, CSV, PICTURE = "comparison.md", "comparison.csv", "comparison.png"


def check_out(out: Path, *, force: bool) -> None:
    """Raise ValueError where `write` could not write into the folder `out`, or would replace a file without `force`."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: {out} is a file; name a folder")
    for name in (TABLE, CSV, PICTURE):
        if (out / name).exists() and not force:
            raise ValueError(f"--out: {out / name} exists; name another folder, or replace it with --force")


def write(found: Comparison, folders: Sequence[Path], out: Path) -> list[Path]:
    """Write the tables as Markdown and CSV, and the runs' curves as PNG if any run logged some; returns the paths.

    Each file appears whole or not at all; one of that name is replaced.
    """
    titles = {f"{mode}_loss": f"mode {number}: {mode}" for number, mode in enumerate(MODES, 1)}
    logs = {}
    for (name, layout), folder in zip(found.runs.items(), folders, strict=True):
        rows = read_losses(folder)
        if any(row[column] is not None for row in rows for column in titles):
            # a masked run logs the loss of each target by itself, which is not a part of a joint probability
            logs[f"{name} ({layout}{', marginals' if layout == 'masked' else ''})"] = rows
    out.mkdir(parents=True, exist_ok=True)
    shown = f"\n![validation losses of the runs, as each logged them]({PICTURE})\n" if logs else ""
    for name, text in ((TABLE, markdown(found) + shown), (CSV, as_csv(found))):
        with replacing(out / name) as beside:
            beside.write_text(text, encoding="utf-8")
    if not logs:
        # that of another comparison would be taken for its own
        (out / PICTURE).unlink(missing_ok=True)
        return [out / TABLE, out / CSV]
    save_whole(draw_comparison(logs, titles=titles), out / PICTURE)
    return [out / TABLE, out / CSV, out / PICTURE]


def as_csv(found: Comparison) -> str:
    """A line for each figure, its attributes as columns; empty where there is no number."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([field.name for field in dataclasses.fields(Figure)])
    for figure in found.figures:
        writer.writerow([f"{cell:.9g}" if isinstance(cell, float) else cell for cell in dataclasses.astuple(figure)])
    return file.getvalue()


def markdown(found: Comparison) -> str:
    """The tables as Markdown, aligned for a terminal, and what the sets are; a note for each figure that is missing."""
    first, *others = found.runs
    modes, sets = list(MODES), [*MODES, *GAINS]
    notes = list(dict.fromkeys(_note(one) for one in found.figures if one.missing_because))

    def nats(one: Figure) -> str:
        loss = _number(one.nats_per_token, ".4f", one.standard_error)
        return f"- [{notes.index(_note(one)) + 1}]" if one.missing_because else loss

    def table(corner: str, names: Sequence[str], runs: Sequence[str], write: Callable[[Figure], str]) -> str:
        return _table([corner, *runs], [[name, *(write(found.of(run, name)) for run in runs)] for name in names])

    runs = [first, *others]
    layouts = ["layout", "", *found.runs.values()]
    losses = [[name, str(found.of(first, name).tokens), *(nats(found.of(run, name)) for run in runs)] for name in sets]
    parts = [
        f"The questions in {found.source}: {found.figures[0].blocks} blocks. In brackets the standard error, blocks "
        "taken as independent.",
        _table(["nats per target", "targets", *runs], [layouts, *losses]),
    ]
    if others:
        parts += [
            f"Paired differences, each block compared with itself: the loss, or gain, less that of {first}.",
            table(f"less {first}", sets, others, _difference),
        ]
    parts.append(table("perplexity", modes, runs, lambda one: _number(one.perplexity, ",.2f")))
    if any(one.bits_per_byte is not None for one in found.figures):
        parts.append(table("bits per byte", modes, runs, lambda one: _number(one.bits_per_byte, ".4f")))
    if notes:
        parts.append("\n".join(f"- [{number}] {note}" for number, note in enumerate(notes, 1)))
    meaning = {**MODES, **{gain: f"{plain} less {informed}" for gain, (plain, informed) in GAINS.items()}}
    parts.append("\n".join(f"- {name}: {says}" for name, says in meaning.items()))
    return "\n\n".join(parts) + "\n"


def _difference(figure: Figure) -> str:
    return _number(figure.difference, "+.4f", figure.difference_standard_error)


def _note(figure: Figure) -> str:
    return f"{figure.run}: {figure.missing_because}"


def _number(value: float | None, form: str, error: float | None = None) -> str:
    if value is None:
        return "-"
    return format(value, form) + ("" if error is None else f" ({error:.4f})")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    # a bar would end a cell
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        return f"| {' | '.join([cells[0].ljust(widths[0]), *padded[1:]])} |"

    rule = f"| {'-' * widths[0]} | {' | '.join('-' * (width - 1) + ':' for width in widths[1:])} |"
    return "\n".join([line(lines[0]), rule, *map(line, lines[1:])])
