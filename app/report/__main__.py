"""Tables and plots of finished, running or killed runs: ``python -m app.report RUN [RUN ...] [--output FOLDER]``.

Shapes: n runs of a group.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from app.console.arguments import OneLineParser
from app.console.errors import describe, fail, wants_traceback
from app.console.table import Table
from app.report.curves import STAGES, draw_all, variants
from app.report.runs import Array, Group, Run, group_by_experiment, read_runs

METRICS = {"top1": "top-1", "top5": "top-5"}

CONDITION = "covariance/condition_number"

SOURCE = ("table", "row")
"""Keys of `published` that say where its numbers come from."""

RESULTS_NOTE = (
    "In percent, of the validation set where nothing else is said. Final: the last validation; best: the one with the "
    "best top-1, and its top-5. Of several seeds: mean ± standard deviation (n - 1 in its denominator), and the best "
    "seed in parentheses. Published: what the key `published` of the configuration says."
)

PLOTS_NOTE = (
    "Of several seeds: thin lines, and their mean. Where a curve has more points than a figure can show, the band is "
    "the range within each small interval of steps, over all seeds and with every spike, and the line its median. "
    "Vertical lines: the hybrid protocol goes to its next stage."
)


def results_table(groups: Sequence[Group]) -> Table:
    """Error and accuracy of every group, beside what was published."""
    rows = []
    for group in groups:
        for metric, name in METRICS.items():
            found = np.array([pair for run in group.runs if (pair := final_and_best(run, metric))])
            tests = np.array(
                [run.curves[tag].values[-1] for run in group.runs if (tag := f"test/{metric}") in run.curves]
            )
            for quantity in ("error", "accuracy"):
                if len(found):
                    cells = [spread(x, quantity) for x in found.T]
                    rows.append([group.label, f"{name} {quantity}", *cells, *_published(group, metric, quantity)])
                if len(tests):
                    rows.append([group.label, f"test {name} {quantity}", spread(tests, quantity), "", "", ""])
    header = ["run", "", "final", "best", "published", "source"]
    return Table("results", "Error and accuracy", RESULTS_NOTE, header, rows)


def final_and_best(run: Run, metric: str) -> tuple[float, float] | None:
    """Accuracy of the last validation, and of the one with the best top-1, as fractions."""
    curve, top1 = run.curves.get(f"val/{metric}"), run.curves.get("val/top1")
    if curve is None or top1 is None:
        return None
    best = curve.values[curve.steps == top1.steps[np.argmax(top1.values)]]
    return float(curve.values[-1]), float(best[0]) if len(best) else np.nan


def spread(accuracies: Array, quantity: str) -> str:
    """Accuracies ``(n,)`` as text: ``12.30``, or of several seeds ``12.40 ± 0.14 (min 12.30)``, in percent."""
    x = 100 * (1 - accuracies if quantity == "error" else accuracies)
    if len(x) == 1:
        return f"{x[0]:.2f}"
    best = f"min {x.min():.2f}" if quantity == "error" else f"max {x.max():.2f}"
    return f"{x.mean():.2f} ± {x.std(ddof=1):.2f} ({best})"


def _published(group: Group, metric: str, quantity: str) -> tuple[str, str]:
    """What is published of a quantity, also where it is given as its complement; and where."""
    numbers = []
    for when in ("", "final", "best"):
        for given in ("error", "accuracy"):
            value = group.published.get("_".join(filter(None, (when, metric, given))))
            if given != quantity and isinstance(value, int | float):
                value = round(100 - value, 4)
            if value is not None and (given == quantity or isinstance(value, int | float)):
                numbers.append(f"{when} {value}".strip())
    source = ", ".join(str(group.published[key]) for key in SOURCE if key in group.published)
    return (", ".join(dict.fromkeys(numbers)), source) if numbers else ("", "")


def runs_table(groups: Sequence[Group]) -> Table:
    """What was read: every run with its seed, its length and its failed decompositions."""
    rows = []
    for group in groups:
        for run in group.runs:
            last = max(
                curve.steps[-1]
                for tag, curve in run.curves.items()
                if not tag.startswith("test/") or len(run.curves) == 1
            )
            epochs = run.epochs(np.array([last]))
            failures = run.curves.get("svd/failures")
            rows.append(
                [
                    group.label,
                    str(run.folder),
                    run.seed,
                    "" if epochs is None else f"{epochs[0]:.4g}",
                    f"{last + 1:.0f}",
                    "" if failures is None else f"{failures.values[-1]:.0f}",
                ]
            )
    header = ["run", "folder", "seed", "epochs", "steps", "SVD failures"]
    return Table("runs", "Runs", "", header, rows)


def condition_table(groups: Sequence[Group]) -> Table:
    """Mean condition number of the covariance in each stage of the hybrid protocol (ICCV 2021, table 1)."""
    rows = []
    for tag in variants(groups, CONDITION):
        layer = tag.removeprefix(CONDITION).replace("/", ", ")
        for group in groups:
            found = [stage_means(run, tag) for run in group.runs if tag in run.curves]
            for stage in sorted({stage for means in found for stage in means}):
                means = np.array([means[stage] for means in found if stage in means])
                text = f"{means.mean():.3g}" + (f" ± {means.std(ddof=1):.2g}" if len(means) > 1 else "")
                rows.append([group.label + layer, STAGES.get(stage, "all"), text])
    note = "Mean of the logged values, which are means over the batch; of several seeds mean ± standard deviation."
    return Table("condition_number", "Condition number by stage", note, ["run", "stage", "mean"], rows)


def stage_means(run: Run, tag: str) -> dict[int, float]:
    """Mean of a curve by stage of the hybrid protocol; the stage is -1 where none was at work."""
    curve, stage = run.curves[tag], run.curves.get("hybrid/stage")
    if stage is None:
        return {-1: float(curve.values.mean())}
    # the stage is logged at the end of the epoch that it holds for; an unfinished epoch is taken to go on with the last
    coming = np.minimum(np.searchsorted(stage.steps, curve.steps), len(stage.steps) - 1)
    stages = stage.values[coming]
    return {int(s): float(curve.values[stages == s].mean()) for s in np.unique(stages)}


def write_report(runs: Sequence[Run], folder: Path) -> Path:
    """Write ``report.md`` and its pictures into a folder; other files there stay."""
    groups = group_by_experiment(list(runs))
    folder.mkdir(parents=True, exist_ok=True)
    tables = [table for make in (results_table, condition_table, runs_table) if (table := make(groups)).rows]
    text = ["# Report", "", *(_escaped(table).markdown() for table in tables)]
    text += ["## Plots", "", textwrap.fill(PLOTS_NOTE, 120), ""]
    for file, caption in draw_all(groups, folder):
        text += [f"![{caption}]({file})", "", f"{caption}.", ""]
    report = folder / "report.md"
    report.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")
    return report


def _escaped(table: Table) -> Table:
    """Text of the user must not end a cell or a line."""
    rows = [[" ".join(cell.split()).replace("|", r"\|") for cell in row] for row in table.rows]
    return Table(table.name, table.title, table.note, table.header, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the runs and write the report."""
    parser = OneLineParser(
        "python -m app.report",
        usage="python -m app.report RUN [RUN ...] [--output FOLDER]",
        description="Write a report of runs: a table beside the published numbers, and plots.",
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folder of a run (runs/demo/version_0), or of several (runs)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("report"), metavar="FOLDER", help="where to write it (default: report)"
    )
    options = parser.parse_args(arguments)
    try:
        runs = _read(options.runs)
        try:
            options.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"--output {options.output} cannot be made ({error.strerror}): give another folder"
            ) from error
        print(write_report(runs, options.output))
    except Exception as error:
        if wants_traceback():
            raise
        fail(_reason(error))


def _read(folders: Sequence[Path]) -> list[Run]:
    runs: dict[Path, Run] = {}
    empty: list[Path] = []
    for folder in folders:
        found, without = read_runs(folder)
        runs.update({run.folder.resolve(): run for run in found})
        empty += without
    if not runs:
        raise ValueError(f"{folders[0]}: its event files hold no scalar: the run ended before it logged anything")
    for nothing in empty:
        print(f"{nothing}: its event files hold no scalar, left out", file=sys.stderr)
    return list(runs.values())


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return describe(error)


if __name__ == "__main__":
    main()
