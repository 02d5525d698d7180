"""Whether what a paper concludes from a table is seen in ours: pair by pair, and by rank."""
from collections.abc import Callable
from dataclasses import dataclass

from experiments.results import Values
from experiments.table import Column, Finding, Table

SURE = 2.0  # standard errors of the difference


@dataclass(frozen=True)
class Verdict:
    better: str
    worse: str
    word: str      # reproduced, reversed, not resolved, not measured, in this direction
    text: str      # with numbers


def judge(better: Values, worse: Values, lower: bool) -> tuple[str, str]:
    """(word, numbers) for two rows of which the paper has the first better."""
    if better.mean is None or worse.mean is None:
        return "not measured", ""
    gain = (worse.mean - better.mean) * (1 if lower else -1)
    numbers = f"{better.mean:.4g} against {worse.mean:.4g}"
    if better.error is None or worse.error is None:
        return ("in this direction" if gain > 0 else "in the other direction"), f"{numbers}, one seed"
    error = (better.error**2 + worse.error**2) ** 0.5
    if abs(gain) <= SURE * error:
        return "not resolved", f"{numbers}, +- {error:.2g}"
    return ("reproduced" if gain > 0 else "reversed"), f"{numbers}, +- {error:.2g}"


def verdicts(finding: Finding, column: Column, of: Callable[[str], Values]) -> list[Verdict]:
    return [Verdict(better, worse, *judge(of(better), of(worse), column.lower_is_better))
            for better, worse in finding.better]


def summary(found: list[Verdict]) -> str:
    """One word where all pairs agree, else how many there are of each."""
    words = [v.word for v in found]
    if not words:
        return "not tested by pairs"
    if len(set(words)) == 1:
        return words[0] if len(words) == 1 else f"{words[0]} (all {len(words)} pairs)"
    return ", ".join(f"{words.count(word)} of {len(words)} {word}" for word in dict.fromkeys(words))


@dataclass(frozen=True)
class Ranks:
    """Kendall's tau between the paper's numbers and ours, over the rows that have both."""
    rows: int
    tau: float
    p: float   # of a |tau| as large if the orders had nothing to do with each other


def ranks(table: Table, column: Column, of: Callable[[str], Values], rows: list[str]) -> Ranks | None:
    """None for fewer than three rows."""
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
