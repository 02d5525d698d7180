"""Makes a report of a sweep: the paper's numbers next to ours, with errors, protocol and cost, as Markdown and HTML.

  python -m experiments.report ddim_table1 --scale=mini --seeds=3
  python -m experiments.report ddim_table1 --scale=mini --seeds=3 --out=docs/results/ddim_table1
  python -m experiments.report --folder=sweeps/ddim_table1-mini

Writes OUT.md with its pictures OUT-*.png, and OUT.html, one file with all. Default: report in the sweep's folder. It
lists unfinished and failed jobs; the flags are those of experiments.run.
"""
import base64
import datetime
import html
import json
import shlex
import sys
from pathlib import Path

from diffusion.errors import ConfigError
from diffusion.io.files import atomic_write
from diffusion.io.reading import expanded
from experiments import figures, findings
from experiments.gather import Ours, Report, RowReport, gather
from experiments.run import command, listed, parse, parser, sweep_of
from experiments.table import ROOT, Cell

_CONCLUSIONS = "What the paper concludes, and whether it is seen here"
_DOUBTS = {"recalled": "from memory, and not compared with the paper",
           "second hand": "as others quote the paper, and not compared with it"}
_GRIDS = 24  # pictures of samples


def cell_text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    text = "-" if cell.value is None else f"{cell.value:g}" + (f" ± {cell.error:g}" if cell.error else "")
    return text + "".join(f" ({words})" for words in (cell.doubt, cell.note) if words)


def ours_text(row: RowReport, column: Ours, seeds: int) -> str:
    values = row.ours[column]
    if values.mean is None:
        return "failed" if row.failed else "-"
    text = f"{values.mean:.4g}" + (f" ± {values.error:.2g}" if values.error is not None else "")
    return text + (f" (n = {len(values.values)})" if len(values.values) != seeds else "")


def amount(number: float | None) -> str:
    if number is None:
        return "-"
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def papers(report: Report) -> list[str]:
    """The paper's columns with any cells."""
    return [c.name for c in report.sweep.table.columns if any(row.paper[c.name] for row in report.rows)]


def head(report: Report) -> list[str]:
    return ["row", *[f"paper: {name}" for name in papers(report)], *[f"ours: {c.called}" for c in report.columns],
            "device hours", "training FLOP"]


def body(report: Report) -> list[list[str]]:
    return [[row.name, *[cell_text(row.paper[name]) for name in papers(report)],
             *[ours_text(row, c, report.sweep.seeds) for c in report.columns], f"{row.hours:.2f}",
             amount(row.train_flops)] for row in report.rows]


def facts(report: Report) -> list[str]:
    """The lines above the table: source, protocol, and missing results."""
    sweep, table = report.sweep, report.sweep.table
    scale = table.scale(sweep.scale)
    hours = sum(row.hours for row in report.rows)
    found = [f"Source: {table.source}.", f"Scale: {sweep.scale}. {scale.about}",
             f"Ours: mean ± standard error over {sweep.seeds} seed{'s' * (sweep.seeds > 1)}; {hours:.1f} device hours; "
             f"commit {', '.join(report.commits) or 'unknown'}; {datetime.date.today()}."]
    doubts = {cell.doubt for row in report.rows for cell in row.paper.values() if cell and cell.doubt}
    found += [f"\"{doubt}\": {_DOUBTS.get(doubt, 'not compared with the paper itself')}." for doubt in sorted(doubts)]
    for protocol in dict.fromkeys(c.protocol for c in report.columns if c.protocol):
        called = ", ".join(c.called for c in report.columns if c.protocol == protocol)
        found.append(f"Protocol of {called}: {protocol_text(json.loads(protocol))}.")
    for c in report.columns:
        if noise := findings.noise([row.ours[c] for row in report.rows]):
            found.append(f"Noise of {c.called}: {noise}.")
    if report.done < len(sweep.jobs):
        found.append(f"Not finished: {report.done} of {len(sweep.jobs)} jobs are done.")
    found += [f"Failed: {row.name}: {row.failed}" for row in report.rows if row.failed]
    return found


def protocol_text(protocol: dict, prefix: str = "") -> str:
    words = []
    for key, value in protocol.items():
        if isinstance(value, dict):
            words.append(protocol_text(value, f"{key} "))
        else:
            words.append(f"{prefix}{key} {str(value)[:12] if 'sha256' in key else value}")
    return ", ".join(words)


def conclusions(report: Report) -> list[tuple[str, str, list[str]]]:
    """(the paper's conclusion, our verdict, the pairs)."""
    found = [(f.text, findings.summary(v), [f"{x.better} against {x.worse}: {x.text or x.word}"
                                            + (f": {x.word}" if x.text else "") for x in v])
             for f, v in report.findings]
    return found + [(f"The order of all rows by {c.column.name} ({c.called})", findings.in_words(r), [])
                    for c, r in report.ranks]


def pictures(report: Report) -> list[tuple[str, str, bytes]]:
    """(name, caption, PNG)."""
    found = []
    for i, column in enumerate(report.columns):
        if drawn := figures.quality(report, column):
            beside = f", and the paper's {column.column.name}" if figures.has_paper(report, column) else ""
            found.append((f"quality{i}" if i else "quality", f"{column.called}: ours over the seeds{beside}", drawn))
    if drawn := figures.losses(report):
        found.append(("loss", "Training loss: mean over the seeds, and the band that holds all of them. Other "
                      "objectives are on other scales.", drawn))
    return found


def grids(report: Report) -> list[tuple[str, Path]]:
    """(row, a picture of its samples)."""
    return [(row.name, row.grid) for row in report.rows if row.grid][:_GRIDS]


def markdown(report: Report, stem: str) -> tuple[str, dict[str, bytes]]:
    """The page, and its pictures by file name."""
    files: dict[str, bytes] = {}
    lines = [f"# {report.sweep.table.title}", "", *[f"{fact}\n" for fact in facts(report)],
             "| " + " | ".join(head(report)) + " |", "|" + "---|" * len(head(report)),
             *["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in body(report)], ""]
    said = conclusions(report)
    lines += [f"## {_CONCLUSIONS}"] if said else []
    for text, verdict, pairs in said:
        lines += [f"- {text}: **{verdict}**", *[f"  - {pair}" for pair in pairs]]
    for name, caption, content in pictures(report):
        files[f"{stem}-{name}.png"] = content
        lines += ["", f"![{caption}]({stem}-{name}.png)", "", caption]
    lines += ["", "## Made by", "", f"    python -m experiments.run {arguments(report)}",
              f"    python -m experiments.report {arguments(report)}"]
    return "\n".join(lines) + "\n", files


def arguments(report: Report) -> str:
    sweep = report.sweep
    return f"{shlex.join(sweep.named_by or (sweep.table.name,))} --scale={sweep.scale} --seeds={sweep.seeds}"


STYLE = """
:root { color-scheme: light }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem; color: #1a1a1a }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
p, li { overflow-wrap: anywhere }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top }
th:first-child, td:first-child { text-align: left; min-width: 9rem }
th { border-bottom: 2px solid #888 } td.paper, th.paper { color: #666 }
img { max-width: min(100%, 38rem); height: auto } figure { margin: 1rem 0 } figcaption { font-size: .9rem; color: #555 }
.grids { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 1rem }
.grids img { width: 100%; image-rendering: pixelated }
.verdict { font-weight: 600 } details { color: #444; font-size: .9rem } code { font-size: .85rem }
pre { overflow-x: auto; background: #f5f5f5; padding: .6rem }
"""


def page(report: Report) -> str:
    e = html.escape

    def figure(caption: str, content: bytes) -> str:
        data = base64.b64encode(content).decode()
        return (f'<figure><img alt="{e(caption)}" src="data:image/png;base64,{data}">'
                f"<figcaption>{e(caption)}</figcaption></figure>")

    def row(tag: str, texts: list[str]) -> str:
        cells = [f'<{tag}{" class=paper" if name.startswith("paper: ") else ""}>{e(text)}</{tag}>'
                 for text, name in zip(texts, head(report))]
        return f"<tr>{''.join(cells)}</tr>"

    parts = [f"<h1>{e(report.sweep.table.title)}</h1>", *[f"<p>{e(fact)}</p>" for fact in facts(report)],
             '<div class="wide"><table><thead>', row("th", head(report)), "</thead><tbody>",
             *[row("td", texts) for texts in body(report)], "</tbody></table></div>"]
    said = conclusions(report)
    parts += [f"<h2>{_CONCLUSIONS}</h2><ul>"] if said else []
    for text, verdict, pairs in said:
        more = f"<details><summary>{len(pairs)} pair{'s' * (len(pairs) > 1)}</summary><ul>" + "".join(
            f"<li>{e(pair)}</li>" for pair in pairs) + "</ul></details>" if pairs else ""
        parts.append(f'<li>{e(text)}: <span class="verdict">{e(verdict)}</span>{more}</li>')
    parts += ["</ul>"] if said else []
    parts += [*[figure(caption, content) for _, caption, content in pictures(report)]]
    if shown := grids(report):
        parts += ["<h2>Samples of the first seed</h2><div class=grids>",
                  *[figure(name, path.read_bytes()) for name, path in shown], "</div>"]
    parts += ["<h2>Made by</h2>", f"<pre>python -m experiments.run {e(arguments(report))}\n"
              f"python -m experiments.report {e(arguments(report))}</pre>"]
    return ('<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width, initial-scale=1"><title>{e(report.sweep.table.title)}</title>'
            f"<style>{STYLE}</style></head><body>" + "\n".join(parts) + "</body></html>\n")


def main(argv: list[str]) -> int:
    p = parser("report", __doc__)
    p.add_argument("--out", type=expanded, help="the path without its ending; default: report in the sweep's folder")
    args, flags = parse(p, argv)
    if not args.table and not flags and not args.folder:
        print(f"Tables:\n{listed()}")
        return 0
    sweep = sweep_of(args, flags)
    if not (sweep.folder / "ledger.jsonl").exists():
        raise ConfigError(f"There is no sweep in {sweep.folder}. Run it first: python -m experiments.run with the same "
                          "arguments.")
    report, out = gather(sweep), args.out or sweep.folder / "report"
    text, files = markdown(report, out.name)
    out.parent.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        atomic_write(out.parent / name, content)
    atomic_write(out.with_name(out.name + ".md"), text)
    atomic_write(out.with_name(out.name + ".html"), page(report))
    where = out.relative_to(ROOT) if out.is_relative_to(ROOT) else out
    print(f"{where}.md and {where}.html: {report.done} of {len(sweep.jobs)} jobs are done", file=sys.stderr)
    for text, verdict, _ in conclusions(report):
        print(f"{text}: {verdict}")
    return 0


if __name__ == "__main__":
    command(main)
