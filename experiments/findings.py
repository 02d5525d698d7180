"""Tests whether a paper's conclusions from a table hold in ours: pair by pair, and by rank."""
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from experiments.results import Values
from experiments.table import Column, Finding, Table

SURE = 0.05  # a difference with a smaller p exceeds the noise between seeds


@dataclass(frozen=True)
class Verdict:
    better: str
    worse: str
    word: str      # reproduced, reversed, not resolved, not measured, in this direction
    text: str      # with numbers


def judge(better: Values, worse: Values, lower: bool, paired: bool = False) -> tuple[str, str]:
    """(verdict, numbers) for two rows, the first better in the paper, by a two-sided test of Student's.

    paired: the rows measure the same trained models, so the differences are taken seed by seed; else Welch's test,
    for means with different spreads.
    """
    if better.mean is None or worse.mean is None:
        return "not measured", ""
    gain = (worse.mean - better.mean) * (1 if lower else -1)
    numbers = f"{better.mean:.4g} against {worse.mean:.4g}"
    if min(len(better.values), len(worse.values)) < 2:
        return ("in this direction" if gain > 0 else "in the other direction"), f"{numbers}, one seed"
    p = p_value(better, worse, paired)
    word = "not resolved" if not p < SURE else "reproduced" if gain > 0 else "reversed"
    return word, f"{numbers}, p = {p:.2g}"


def p_value(a: Values, b: Values, paired: bool) -> float:
    """The p-value of the difference, if the rows did not differ. NaN if nothing varies."""
    from scipy import stats
    with warnings.catch_warnings(action="ignore"):  # about zero variance
        found = (stats.ttest_rel(a.values, b.values) if paired and a.seeds == b.seeds
                 else stats.ttest_ind(a.values, b.values, equal_var=False))
    return float(found.pvalue)


def verdicts(finding: Finding, column: Column, of: Callable[[str], Values],
             paired: Callable[[str, str], bool]) -> list[Verdict]:
    """of: a row's values. paired: whether two rows measure the same trained models."""
    return [Verdict(better, worse, *judge(of(better), of(worse), column.lower_is_better, paired(better, worse)))
            for better, worse in finding.better]


def summary(found: list[Verdict]) -> str:
    """One verdict if all pairs agree, else the number of each."""
    words = [v.word for v in found]
    if not words:
        return "not tested by pairs"
    if len(set(words)) == 1:
        return words[0] if len(words) == 1 else f"{words[0]} (all {len(words)} pairs)"
    return ", ".join(f"{words.count(word)} of {len(words)} {word}" for word in dict.fromkeys(words))


def noise(rows: list[Values]) -> str:
    """A sentence on the variation of a row's number over the seeds, and the smallest difference that is significant."""
    from scipy import stats
    spreads = [statistics.stdev(v.values) / abs(v.mean) for v in rows if len(v.values) > 1 and v.mean]
    if not spreads:
        return ""
    seeds = max(len(v.values) for v in rows)
    typical = statistics.median(spreads)
    least = stats.t.ppf(1 - SURE / 2, 2 * seeds - 2) * typical * (2 / seeds) ** 0.5
    return (f"standard deviation over the seeds {100 * typical:.2g} % of a row's number (median; "
            f"{100 * min(spreads):.2g} to {100 * max(spreads):.2g} %), so that two rows of {seeds} seeds are told "
            f"apart (p = {SURE}) from a difference of about {100 * least:.2g} % on")


@dataclass(frozen=True)
class Ranks:
    """Kendall's tau between the paper's numbers and ours, over the rows with both."""
    rows: int
    tau: float
    p: float   # of a |tau| as large for unrelated orders


def ranks(table: Table, column: Column, of: Callable[[str], Values], rows: list[str]) -> Ranks | None:
    """The rank correlation of a column; None for fewer than three rows."""
    pairs = [(cell.value, of(name).mean) for name in rows
             if (cell := table.row(name).cell(column.name)) and cell.value is not None and of(name).mean is not None]
    if len(pairs) < 3:
        return None
    from scipy.stats import kendalltau
    found = kendalltau(*zip(*pairs))
    return Ranks(len(pairs), float(found.statistic), float(found.pvalue))


def in_words(found: Ranks) -> str:
    text = f"Kendall's tau {found.tau:.2f} over {found.rows} rows, p = {found.p:.2g}: "
    if found.tau > 0 and found.p < 0.05:
        return text + "the order of the paper's rows is reproduced."
    if found.tau < 0 and found.p < 0.05:
        return text + "the order is the reverse of the paper's."
    return text + "the order of the paper's rows is not reproduced; nor is it excluded."
