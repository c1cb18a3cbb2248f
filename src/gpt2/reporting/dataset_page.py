"""The report on a dataset as one HTML page."""

from html import escape

import numpy as np

from gpt2.data.inspect import DatasetReport, SplitReport
from gpt2.reporting.charts import Chart, Curves, Line
from gpt2.reporting.markup import colours, frame, sections, table
from gpt2.reporting.style import about
from gpt2.reporting.svg import figures

BINS = 40
"""Bins of the histogram of document lengths, which grow by a constant factor."""


def page(report: DatasetReport) -> str:
    """Return the page about a dataset: figures of each split, charts and excerpts."""
    names = list(report.splits)
    rows = [
        f"<tr><th scope=row>{label}</th>{''.join(f'<td>{escape(value)}</td>' for value in values)}</tr>"
        for label, values in _rows(list(report.splits.values()))
    ]
    overlap = "" if report.overlap is None else f"{report.overlap:,} documents or blocks of val are in train too."
    total = sum(split.tokens for split in report.splits.values())
    facts = [f"{about(total)} tokens", f"{report.tokenizer} tokenizer", f"{report.vocab_size:,} ids"]
    excerpts = {
        f"excerpts-{i}": f"<h2>Excerpts of {escape(name)}</h2>{_texts(split.excerpts)}"
        for i, (name, split) in enumerate(report.splits.items())
    }
    charts = "".join(figures({"steps": curves}) for curves in (_lengths(report), _ranks(report)) if curves)
    charts = f"<div class='charts two several'>{charts}</div>"
    head = f"<h1>{escape(report.path)}</h1><ul class=facts>{''.join(f'<li>{escape(f)}</li>' for f in facts)}</ul>"
    one_text = "" if _lengths(report) else "<p class=none>No end-of-text token: each split is one long text.</p>"
    return frame(
        report.path,
        sections(
            {
                "head": f"{head}{table(['', *names], rows)}<p class=none>{overlap}</p>",
                "curves": f"<h2>Documents and ids</h2>{colours(names)}{charts}{one_text}",
                **excerpts,
            }
        ),
    )


def _texts(excerpts: list[str]) -> str:
    return "".join(f"<pre class=card>{escape(text)}</pre>" for text in excerpts)


def _rows(splits: list[SplitReport]) -> list[tuple[str, list[str]]]:
    """Return the rows of the table: what each says, and its value for each split."""
    quantiles = dict.fromkeys(key for split in splits for key in split.tokens_per_document)
    return [
        ("files", [f"{s.files:,}" for s in splits]),
        ("file format", [", ".join(s.formats) for s in splits]),
        ("tokens", [f"{s.tokens:,}" for s in splits]),
        ("documents", ["–" if s.documents is None else f"{s.documents:,}" for s in splits]),
        *(
            (f"tokens per document, {q}", [f"{s.tokens_per_document.get(q, 0):,.0f}" for s in splits])
            for q in quantiles
        ),
        ("end-of-text rate", [f"{s.eot_rate:.3%}" for s in splits]),
        ("largest id", [f"{s.largest_id:,}" for s in splits]),
        ("ids never used", [f"{s.unused_ids:,}" for s in splits]),
        ("duplicates", [f"{s.duplicates:,}" for s in splits]),
    ]


def _lengths(report: DatasetReport) -> Curves | None:
    """Return a histogram of the documents' lengths; None where no split has documents."""
    measured = {n: s for n, s in report.splits.items() if s.documents is not None and len(s.lengths)}
    if not measured:
        return None
    longest = max(int(split.lengths.max()) for split in measured.values())
    edges = np.unique(np.geomspace(1, longest + 1, BINS).astype(int))
    lines = []
    for number, name in enumerate(report.splits):
        if name in measured:
            counts, _ = np.histogram(measured[name].lengths, bins=edges)
            xs, ys = np.repeat(edges, 2)[1:-1], np.repeat(counts, 2)  # both ends of each bin
            lines.append(Line("documents", "train", xs.tolist(), ys.tolist(), number, name))
    title, x_title = "Documents by their length", "tokens per document"
    return Curves([Chart(title, lines, from_zero=True, x_title=x_title, x_log=True)], float(edges[-1]))


def _ranks(report: DatasetReport) -> Curves | None:
    """Return how often each id occurs, from the most frequent to the rarest."""
    lines, last = [], 1
    for number, (name, split) in enumerate(report.splits.items()):
        used = np.sort(split.counts[split.counts > 0])[::-1]
        ranks = np.unique(np.geomspace(1, len(used), 400).astype(int))  # more than a drawing shows
        lines.append(Line("occurrences", "train", ranks.tolist(), used[ranks - 1].tolist(), number, name))
        last = max(last, len(used))
    title, x_title = "Occurrences of each id", "rank of the id"
    return Curves([Chart(title, lines, log=True, x_title=x_title, x_log=True)], float(last))
