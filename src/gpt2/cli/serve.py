"""`gpt2 serve`."""

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gpt2.cli.arguments import DeviceArg, DTypeArg, QuantizeArg, TokenizerArg
from gpt2.errors import UserError
from gpt2.runlog.console import note
from gpt2.training.setting import PATH, PORT, within

KEY_VARIABLE = "GPT2_API_KEY"
"""Environment variable with the API key."""


def serve(
    *models: Annotated[str, PATH, Parameter(required=True)],
    lora: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    host: str = "127.0.0.1",
    port: Annotated[int, PORT] = 8000,
    parallel: Annotated[int, within(1, 1024)] = 16,
    queue: Annotated[int, within(0, 100_000)] = 128,
    timeout: Annotated[float, within(1, 86_400)] = 600.0,
    grace: Annotated[float, within(0, 86_400)] = 30.0,
    prefix_cache: Annotated[int, within(0, 1_000_000)] = 256,
    api_key_file: Path | None = None,
    cors_origin: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    log_prompts: Annotated[bool, Parameter(negative=())] = False,
    tokenizer: TokenizerArg = None,
    device: DeviceArg = "auto",
    dtype: DTypeArg = "float32",
    quantize: QuantizeArg = "none",
) -> None:
    """Serve models over HTTP: a page to write and read with, and OpenAI's API, such as /v1/completions.

    Parameters
    ----------
    models
        Run folders, checkpoints, Hugging Face folders or names, or model files. A model's name in the API is the last
        part of its path; NAME=MODEL gives it another one.
    lora
        Folder of a LoRA adapter of PEFT, or NAME=FOLDER. MODEL with the adapter's weights added is served as one more
        model. Repeat it for several.
    host
        Address to listen on. Any other than this machine's own needs an API key.
    port
        Port to listen on; 0 is any free one.
    parallel
        Number of texts that a model generates at the same time. Each takes memory for the keys and values of the
        model's context.
    queue
        Number of texts that may wait for a model; further requests are refused with status 429.
    timeout
        Seconds that a request may take.
    grace
        Seconds that running requests have to end, after SIGTERM or Ctrl-C. A second signal ends the server at once.
    prefix_cache
        Megabytes in which keys and values of earlier prompts are kept, for prompts that begin in the same way.
    api_key_file
        File with the API key that requests must have. The environment variable GPT2_API_KEY can hold it instead.
    cors_origin
        Origin of a site, such as https://example.org, whose pages may use this server; * is any site. Repeat it for
        several.
    log_prompts
        Write prompts into the log, which otherwise has only their lengths.
    """
    key = api_key(api_key_file)
    if host not in ("127.0.0.1", "localhost", "::1") and key is None:
        raise UserError(
            f"--host={host} can be reached from other machines, which needs an API key; give --api_key_file, or set "
            f"{KEY_VARIABLE}"
        )
    from gpt2.device import pick_device, pick_dtype
    from gpt2.serve import pages
    from gpt2.serve.app import Api
    from gpt2.serve.guard import checked_origins
    from gpt2.serve.open import named_adapters, named_models, open_served
    from gpt2.serve.run import Server, listen
    from gpt2.serve.web import make_app

    origins = checked_origins(cors_origin)
    where = pick_device(device)
    given = named_models(models)
    adapters = named_adapters(lora, given)
    everything = [(name, model, None) for name, model in given.items()]
    everything += [(name, model, folder) for model in given.values() for name, folder in adapters.items()]
    listener = listen(host, port)
    opened = [
        open_served(
            name,
            model,
            tokenizer=tokenizer,
            device=where,
            dtype=pick_dtype(dtype, where),
            quantize=quantize,
            slots=parallel,
            queue=queue,
            prefix_bytes=prefix_cache << 20,
            log=note,
            adapter=adapter,
        )
        for name, model, adapter in everything
    ]
    api = Api(opened, timeout, note, log_prompts)
    # with a key, a page of another site cannot use the server under any name
    names = {"hosts": None} if key else {}
    routes = [*pages.routes(), *api.routes()]
    app = make_app(routes, api.lifespan, origins=origins, api_key=key, **names)
    address = f"[{host}]" if ":" in host else host
    where_to = f"http://{address}:{listener.getsockname()[1]}"
    note(f"serving {where_to}/v1 until Ctrl-C; {where_to}/ is a page to write and read with")
    Server(app, grace, api.fail).run([listener])


def api_key(file: Path | None) -> str | None:
    """Return the key in a file, or else in the environment; None without both. Raises UserError for an empty one."""
    if file is None:
        key, where = os.environ.get(KEY_VARIABLE), KEY_VARIABLE
    else:
        try:
            key, where = file.read_text(encoding="utf-8"), str(file)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the API key from {file} ({error}); write it into that file") from None
    if key is None:
        return None
    if not key.strip() or "\n" in key.strip():
        raise UserError(f"{where} holds no API key; it must be one line that is not empty")
    return key.strip()
