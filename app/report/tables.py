"""The tables of a report: results next to the published ones, condition numbers by stage, and the runs themselves.

Shapes: n runs of a group.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from app.console.table import Table
from app.report.event_files import Array
from app.report.experiments import Group, layer_tags
from app.report.runs import Run
from app.report.stages import STAGES, stage_means

METRICS = {"top1": "top-1", "top5": "top-5"}

CONDITION = "covariance/condition_number"

SOURCE = ("table", "row")
"""Keys of `published` that name the source of its numbers."""

RESULTS_NOTE = (
    "In percent, of the validation set unless stated otherwise. Final: the last validation; best: the one with the "
    "best top-1, and its top-5. Of several seeds: mean ± standard deviation (n - 1 in its denominator), and the best "
    "seed in parentheses. Published: the numbers under the key `published` of the configuration."
)


def results_table(groups: Sequence[Group]) -> Table:
    """Error and accuracy of every group, next to the published numbers."""
    rows = []
    for group in groups:
        for metric, name in METRICS.items():
            final, best, tests = _accuracies(group, metric)
            for quantity in ("error", "accuracy"):
                if len(final):
                    cells = [spread(final, quantity), spread(best, quantity)]
                    rows.append([group.label, f"{name} {quantity}", *cells, *_published(group, metric, quantity)])
                if len(tests):
                    rows.append([group.label, f"test {name} {quantity}", spread(tests, quantity), "", "", ""])
    header = ["run", "", "final", "best", "published", "source"]
    return Table("results", "Error and accuracy", RESULTS_NOTE, header, rows)


def _accuracies(group: Group, metric: str) -> tuple[Array, Array, Array]:
    """Accuracies of the runs that have them: of the last validation, of the best one, and of the test."""
    final, best, tests = [], [], []
    for run in group.runs:
        found = final_and_best(run, metric)
        if found is not None:
            final.append(found[0])
            best.append(found[1])
        test = run.curves.get(f"test/{metric}")
        if test is not None:
            tests.append(test.values[-1])
    return np.array(final), np.array(best), np.array(tests)


def final_and_best(run: Run, metric: str) -> tuple[float, float] | None:
    """Accuracy of the last validation, and of the one with the best top-1, as fractions."""
    curve, top1 = run.curves.get(f"val/{metric}"), run.curves.get("val/top1")
    if curve is None or top1 is None:
        return None
    best = curve.values[curve.steps == top1.steps[np.argmax(top1.values)]]
    if not len(best):  # the run was killed between the two values
        return float(curve.values[-1]), np.nan
    return float(curve.values[-1]), float(best[0])


def spread(accuracies: Array, quantity: str) -> str:
    """Accuracies ``(n,)`` as text: ``12.30``, or of several seeds ``12.40 ± 0.14 (min 12.30)``, in percent."""
    if quantity == "error":
        x = 100 * (1 - accuracies)
        best = f"min {x.min():.2f}"
    else:
        x = 100 * accuracies
        best = f"max {x.max():.2f}"
    if len(x) == 1:
        return f"{x[0]:.2f}"
    return f"{x.mean():.2f} ± {x.std(ddof=1):.2f} ({best})"


def _published(group: Group, metric: str, quantity: str) -> tuple[str, str]:
    """The published numbers of a quantity, even if they are given as its complement, and their source."""
    numbers = []
    for when in ("", "final", "best"):
        for given in ("error", "accuracy"):
            key = f"{when}_{metric}_{given}".lstrip("_")
            value = group.published.get(key)
            if value is None:
                continue
            if given != quantity:
                if not isinstance(value, int | float):  # text has no complement
                    continue
                value = round(100 - value, 4)
            numbers.append(f"{when} {value}".strip())
    if not numbers:
        return "", ""
    source = ", ".join(str(group.published[key]) for key in SOURCE if key in group.published)
    # A number that is published as an error and as an accuracy is printed once.
    return ", ".join(dict.fromkeys(numbers)), source


def runs_table(groups: Sequence[Group]) -> Table:
    """Every run with its seed, its length and its failed decompositions."""
    rows = []
    for group in groups:
        for run in group.runs:
            last = _last_step(run)
            epochs = run.epochs(np.array([last]))
            failures = run.curves.get("svd/failures")
            row = [group.label, str(run.folder), run.seed]
            row.append("" if epochs is None else f"{epochs[0]:.4g}")
            row.append(f"{last + 1:.0f}")
            row.append("" if failures is None else f"{failures.values[-1]:.0f}")
            rows.append(row)
    header = ["run", "folder", "seed", "epochs", "steps", "SVD failures"]
    return Table("runs", "Runs", "", header, rows)


def _last_step(run: Run) -> float:
    """The last step of any curve; that of a test counts only where there is nothing else."""
    curves = [curve for tag, curve in run.curves.items() if not tag.startswith("test/")]
    return float(max(curve.steps[-1] for curve in curves or run.curves.values()))


def condition_table(groups: Sequence[Group]) -> Table:
    """Mean condition number of the covariance in each stage of the hybrid protocol (ICCV 2021, table 1)."""
    rows = []
    for tag in layer_tags(groups, CONDITION):
        layer = tag.removeprefix(CONDITION).replace("/", ", ")
        for group in groups:
            for stage, means in sorted(_means_by_stage(group, tag).items()):
                text = f"{np.mean(means):.3g}"
                if len(means) > 1:
                    text += f" ± {np.std(means, ddof=1):.2g}"
                rows.append([group.label + layer, STAGES.get(stage, "all"), text])
    note = "Mean of the logged values, which are means over the batch; of several seeds mean ± standard deviation."
    return Table("condition_number", "Condition number by stage", note, ["run", "stage", "mean"], rows)


def _means_by_stage(group: Group, tag: str) -> dict[int, list[float]]:
    """The mean of a curve in each stage, one for each run that has it."""
    means: dict[int, list[float]] = {}
    for run in group.runs:
        if tag not in run.curves:
            continue
        for stage, mean in stage_means(run, tag).items():
            means.setdefault(stage, []).append(mean)
    return means
