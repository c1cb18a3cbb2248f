"""The report on a dataset as one HTML page that needs nothing else."""

import base64
import html
import io

import numpy as np

from gpt2.data.inspect import DatasetReport, SplitReport

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { text-align: right; padding: .2rem .8rem }
th:first-child { text-align: left; font-weight: normal } thead th, tr { border-bottom: 1px solid #ddd }
pre { background: #f6f6f6; padding: .5rem .8rem; white-space: pre-wrap; overflow-wrap: anywhere }
img { max-width: 100% }
"""


def page(report: DatasetReport) -> str:
    """HTML of the report, its plots inside."""
    title = f"{html.escape(report.path)} · {report.tokenizer}, {report.vocab_size:,} ids"
    names = "".join(f"<th>{name}</th>" for name in report.splits)
    rows = "".join(
        f"<tr><th>{label}</th>{''.join(f'<td>{figure}</td>' for figure in figures)}</tr>"
        for label, figures in _rows(list(report.splits.values()))
    )
    shared = (
        "" if report.overlap is None else f"<p>{report.overlap:,} documents or blocks of val are in train too.</p>"
    )
    excerpts = "".join(
        f"<h2>Excerpts of {name}</h2>" + "".join(f"<pre>{html.escape(text)}</pre>" for text in split.excerpts)
        for name, split in report.splits.items()
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
        f"<h1>{title}</h1><table><thead><tr><th></th>{names}</tr></thead>{rows}</table>{shared}"
        f'<img alt="document lengths and use of ids" src="data:image/png;base64,{_plots(report)}">{excerpts}</html>\n'
    )


def _rows(splits: list[SplitReport]) -> list[tuple[str, list[str]]]:
    quantiles = dict.fromkeys(key for split in splits for key in split.tokens_per_document)
    return [
        ("files", [f"{s.files:,}" for s in splits]),
        ("format", [", ".join(s.formats) for s in splits]),
        ("tokens", [f"{s.tokens:,}" for s in splits]),
        ("documents", ["–" if s.documents is None else f"{s.documents:,}" for s in splits]),
        *(
            (f"tokens a document, {q}", [f"{s.tokens_per_document.get(q, 0):,.0f}" for s in splits])
            for q in quantiles
        ),
        ("end-of-text rate", [f"{s.eot_rate:.3%}" for s in splits]),
        ("largest id", [f"{s.largest_id:,}" for s in splits]),
        ("ids never used", [f"{s.unused_ids:,}" for s in splits]),
        ("duplicates", [f"{s.duplicates:,}" for s in splits]),
    ]


def _plots(report: DatasetReport) -> str:
    """A PNG, as base64: how long documents are, and how often ids occur by rank."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    lengths, ranks = figure.subplots(1, 2)
    longest = max((int(s.lengths.max()) for s in report.splits.values() if len(s.lengths)), default=1)
    bins = np.unique(np.geomspace(1, longest + 1, 40).astype(int))
    for name, split in report.splits.items():
        if split.documents is not None:
            lengths.hist(split.lengths, bins=bins.tolist(), histtype="step", label=name)
        used = np.sort(split.counts[split.counts > 0])[::-1]
        ranks.plot(np.arange(1, len(used) + 1), used, label=name)
    lengths.set(xscale="log", xlabel="tokens a document", ylabel="documents")
    ranks.set(xscale="log", yscale="log", xlabel="rank of the id", ylabel="times it occurs")
    if not lengths.has_data():
        lengths.set_axis_off()
        lengths.text(0.5, 0.5, "no end-of-text: one long text", ha="center", transform=lengths.transAxes)
    ranks.legend(frameon=False)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return base64.b64encode(out.getvalue()).decode()
