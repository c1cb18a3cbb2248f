"""`gpt2 lens`."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gpt2.cli.arguments import PATH, DataDirArg, DatasetArg, DeviceArg, JsonFlag, ModelArg, TokenizerArg
from gpt2.cli.results import results_stream
from gpt2.runlog.console import WorkConsole, note
from gpt2.training.setting import OUTPUT, within

DEFAULT_PAGE = Path("lens.html")


def lens(
    model: ModelArg,
    text: str = "-",
    /,
    *,
    against: str | None = None,
    answer: str | None = None,
    other: str | None = None,
    compare: Annotated[str | None, PATH] = None,
    dataset: DatasetArg | None = None,
    shortest: Annotated[int, within(1, 1000)] = 5,
    top: Annotated[int, within(2, 100)] = 5,
    out: Annotated[Path | None, OUTPUT, Parameter(name=["--out", "-o"])] = None,
    tokenizer: TokenizerArg = None,
    data_dir: DataDirArg = "data",
    device: DeviceArg = "auto",
    json_: JsonFlag = False,
) -> None:
    """Write one page that shows how a model reads a text: losses, attention, logit lens and attribution.

    The text has at most as many tokens as the model's context. The page needs no network and no other file.

    Parameters
    ----------
    text
        Text to read, FILE:path for the text of a file, or - for standard input.
    against
        A corrupted text with the same number of tokens, for activation patching; also FILE:path.
    answer
        Token whose logit patching follows. Default: the likeliest one after the text.
    other
        Token whose logit is subtracted. Default: the likeliest other one after the corrupted text.
    compare
        Another model, whose losses are shown next to those of this one.
    dataset
        Dataset whose training tokens are searched for passages of the text.
    shortest
        Least number of tokens of such a passage.
    top
        Number of likeliest tokens that are listed for each prediction.
    out
        Page to write. Default: lens.html, or none with --json.
    """
    from gpt2.data.dataset import open_dataset
    from gpt2.device import pick_device
    from gpt2.files import write_text
    from gpt2.formats.open import build, open_model
    from gpt2.formats.source import Source
    from gpt2.generation.text import encode_prompt, read_prompt
    from gpt2.inside.analysis import Analysis, as_lists, single_token
    from gpt2.inside.lens_page import page

    where = pick_device(device)
    content = read_prompt("FILE:/dev/stdin" if text == "-" else text)
    corrupted = None if against is None else read_prompt(against)
    source = open_model(model, tokenizer)
    second = None if compare is None else open_model(compare, tokenizer)
    words = source.tokenizer
    answer_id = None if answer is None else single_token(words, answer, "answer")
    other_id = None if other is None else single_token(words, other, "other")
    tokens = None
    if dataset is not None:
        found = open_dataset(dataset, data_dir, note)
        found.require_tokenizer(words, f"the model {source.origin}", model)
        tokens = found.split("train", 1)
    for opened in (source, second) if second else (source,):
        for line in (f"model {opened.origin}", *opened.notes):
            note(line)
    with Stages() as stages:

        def analysis_by(opened: Source) -> Analysis:
            network, ids = build(opened).to(where).eval(), encode_prompt(opened.tokenizer, content)
            return Analysis(opened.origin, network, opened.tokenizer, ids, stages.report, top)

        analysis = analysis_by(source)
        analysis.add_text()
        if corrupted is not None:
            analysis.add_patching(encode_prompt(words, corrupted), answer_id, other_id)
        if tokens is not None:
            analysis.add_memorised(tokens, shortest)
        values = analysis.finished()
        if second is not None:
            compared = analysis_by(second)
            compared.add_losses()
            values["compared"] = compared.finished()
    target = out or (None if json_ else DEFAULT_PAGE)
    if target is not None:
        write_text(target, page(values))
        note(f"wrote {target}")
    if json_:
        print(json.dumps(values, default=as_lists), file=results_stream(target))


class Stages:
    """Shows the progress of one part of the work after the other."""

    def __init__(self) -> None:
        self.name, self.console = "", WorkConsole("")

    def __enter__(self) -> "Stages":
        return self

    def __exit__(self, *error: object) -> None:
        self.console.__exit__(None, None, None)

    def report(self, name: str, done: int, total: int) -> None:
        """Show how much of a part is done."""
        if name != self.name:
            self.console.__exit__(None, None, None)
            self.name, self.console = name, WorkConsole(name)
            self.console.__enter__()
        self.console.progress(done, total, done)
