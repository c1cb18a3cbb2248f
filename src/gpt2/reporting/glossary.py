"""Explanations of the terms in a report, which a page shows where the pointer or the focus is on the term."""

import re
from html import escape

TERMS = {
    "nats per token": "The cross-entropy of the next token, with natural logarithms. Divided by 0.693 it is bits per "
    "token; e to the power of it is the perplexity.",
    "MFU": "Model FLOPs utilisation: the share of the device's peak rate that the model's own arithmetic uses "
    "(forward and backward) (Chowdhery et al. 2022, appendix B).",
    "Gradient norm": "The length of the gradient of all parameters together, before clipping. A sudden rise is a "
    "sign of an unstable run.",
    "per step": "Tokens of one optimizer step: batch size × context length × gradient accumulation × processes.",
    "acc norm": "The share of HellaSwag's tasks whose right ending has the lowest loss per token. Chance is 0.25. "
    "acc compares the sums over all tokens instead.",
    "HellaSwag": "10,042 tasks, each with four endings of a text, one of which is right (Zellers et al. 2019).",
    "epochs": "How often each training token was seen, on average.",
    "peak memory": "The most memory that the main process had: of tensors on its GPU, or resident without a GPU.",
}
_PATTERN = re.compile("|".join(re.escape(term) for term in sorted(TERMS, key=len, reverse=True)))


def explained(text: str) -> str:
    """Return a text as HTML in which each term of the glossary has its explanation."""
    pieces, end = [], 0
    for found in _PATTERN.finditer(text):
        about = escape(TERMS[found[0]])
        pieces += [escape(text[end : found.start()]), f'<dfn tabindex=0 data-about="{about}">{found[0]}</dfn>']
        end = found.end()
    return "".join([*pieces, escape(text[end:])])
