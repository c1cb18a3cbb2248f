"""The API of a model server: which path does what."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from gpt2 import __version__
from gpt2.errors import Log, UserError
from gpt2.serve.completions import Ask, Completion, chat_completion, completion
from gpt2.serve.errors import ApiError
from gpt2.serve.events import ClientGone, EventStream, unless_gone
from gpt2.serve.guard import read_body
from gpt2.serve.inside import AnalysisBody, CurveBody, Job, PageBody, ReadBody, Reader
from gpt2.serve.metrics import Metrics
from gpt2.serve.openapi import document
from gpt2.serve.schema import ChatBody, CompletionBody, DetokenizeBody, Settings, TokenizeBody, parse
from gpt2.serve.served import Served

CLIENT_GONE = 499
"""Status under which requests are counted whose client left, as in nginx."""


class Api:
    """Answers the requests to some models."""

    def __init__(self, models: Sequence[Served], seconds: float, log: Log, logs_prompts: bool = False) -> None:
        """seconds: the longest time of a request. log: receives a line for each completion, without its prompt unless
        `logs_prompts`.
        """
        self.models = {model.name: model for model in models}
        self.seconds, self.log, self.logs_prompts = seconds, log, logs_prompts
        self.metrics = Metrics(models)
        self.readers = {model.name: Reader(model, log) for model in models}

    def routes(self) -> list[Route]:
        """Return the routes of the application."""
        return [
            Route("/v1/completions", self._counted(self.completions), methods=["POST"]),
            Route("/v1/chat/completions", self._counted(self.chat), methods=["POST"]),
            Route("/v1/models", self._counted(self.list_models)),
            Route("/v1/models/{name:path}", self._counted(self.show_model)),
            Route("/tokenize", self._counted(self.tokenize), methods=["POST"]),
            Route("/detokenize", self._counted(self.detokenize), methods=["POST"]),
            Route("/tokenizer_info", self._counted(self.show_tokenizer)),
            Route("/inside/read", self._counted(self.read), methods=["POST"]),
            Route("/inside/curve", self._counted(self.draw_curve), methods=["POST"]),
            Route("/inside/analysis", self._counted(self.analyse), methods=["POST"]),
            Route("/inside/page", self._counted(self.make_page), methods=["POST"]),
            Route("/health", self.health),
            Route("/metrics", self.show_metrics),
            Route("/openapi.json", self.describe),
        ]

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Run the decoders while the server runs."""
        for model in self.models.values():
            model.decoder.start()
        yield
        for model in self.models.values():
            model.decoder.stop()
        for reader in self.readers.values():
            reader.stop()

    def fail(self) -> None:
        """End all completions with an error, because the server stops."""
        error = ApiError(503, "the server stops; send the request again later", code="server_stops")
        for model in self.models.values():
            model.decoder.fail(error)
        for reader in self.readers.values():
            reader.fail(error)

    # completions

    async def completions(self, request: Request) -> Response:
        """Answer /v1/completions."""
        return await self._complete(request, CompletionBody, completion)

    async def chat(self, request: Request) -> Response:
        """Answer /v1/chat/completions."""
        return await self._complete(request, ChatBody, chat_completion)

    async def _complete(self, request: Request, kind: type[Settings], ask: Ask) -> Response:
        began = time.monotonic()
        body = parse(kind, await read_body(request))
        asked = await asyncio.to_thread(ask, self._named(body.model), body)  # a long prompt takes long to encode
        stream = asked.start()
        if body.stream:
            return EventStream(self._watched(asked, asked.events(stream), began), self.seconds)
        try:
            answer = await unless_gone(request.receive, asked.collect(stream), self.seconds)
        finally:
            stream.close()
            self._record(asked, began)
        return JSONResponse(answer)

    async def _watched(
        self, asked: Completion, events: AsyncIterator[dict[str, Any]], began: float
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of a stream, and record the completion when it ends."""
        try:
            async with contextlib.aclosing(events):  # pyrefly: ignore[bad-specialization]
                async for event in events:
                    yield event
        finally:
            self._record(asked, began)

    def _record(self, asked: Completion, began: float) -> None:
        """Count a completion, and log it."""
        name, usage, seconds = asked.model.name, asked.usage(), time.monotonic() - began
        self.metrics.prompt_tokens.labels(name).inc(usage["prompt_tokens"])
        self.metrics.new_tokens.labels(name).inc(usage["completion_tokens"])
        self.metrics.whole.labels(name).observe(seconds)
        if asked.first_token_at is not None:
            self.metrics.first.labels(name).observe(asked.first_token_at - began)
        reasons = ",".join(sorted({choice.finish_reason or "cancelled" for choice in asked.choices}))
        line = (
            f"{name}: {usage['prompt_tokens']} + {usage['completion_tokens']} tokens in {seconds:.2f} s ({reasons})"
        )
        if self.logs_prompts:
            line += f" {[choice.prompt for choice in asked.choices[:: max(1, asked.settings.n)]]!r}"
        self.log(line)

    # what happens inside

    async def read(self, request: Request) -> Response:
        """Answer /inside/read."""
        body = parse(ReadBody, await read_body(request))
        reader = self.readers[self._named(body.model).name]
        job = reader.submit(await asyncio.to_thread(reader.losses, body))
        text = await unless_gone(request.receive, job.result(), self.seconds)
        return Response(text, media_type="application/json")

    async def draw_curve(self, request: Request) -> Response:
        """Answer /inside/curve."""
        body = parse(CurveBody, await read_body(request))
        reader = self.readers[self._named(body.model).name]
        return await self._streamed(request, reader.submit(await asyncio.to_thread(reader.curve, body)), body.stream)

    async def analyse(self, request: Request) -> Response:
        """Answer /inside/analysis."""
        body = parse(AnalysisBody, await read_body(request))
        reader = self.readers[self._named(body.model).name]
        job = reader.submit(await asyncio.to_thread(reader.analysis, body))
        return await self._streamed(request, job, body.stream)

    async def _streamed(self, request: Request, job: Job, stream: bool) -> Response:
        """Answer with the result of a job, and where it is streamed with its progress before that."""
        if stream:
            return EventStream(job.stream(), self.seconds)
        text = await unless_gone(request.receive, job.result(), self.seconds)
        return Response(text, media_type="application/json")

    async def make_page(self, request: Request) -> Response:
        """Answer /inside/page."""
        body, compared = parse(PageBody, await read_body(request)), None
        if body.compare is None and body.compare_step is not None:
            raise ApiError(400, "compare_step needs compare, the model of that run", param="compare_step")
        reader = self.readers[self._named(body.model).name]
        if body.compare is not None:
            other = self.readers[self._named(body.compare, "compare").name]
            asked = ReadBody(model=body.compare, text=body.text, step=body.compare_step)
            job = other.submit(await asyncio.to_thread(other.losses, asked))
            compared = await unless_gone(request.receive, job.result(), self.seconds)
        job = reader.submit(await asyncio.to_thread(reader.as_page, body, compared))
        return HTMLResponse(await unless_gone(request.receive, job.result(), self.seconds))

    # models and tokens

    def _named(self, name: str | None, param: str = "model") -> Served:
        """Return a model by name; without a name, the only one. Raises ApiError, which names the field `param`."""
        if name is None and len(self.models) == 1:
            return next(iter(self.models.values()))
        if name is None:
            raise ApiError(400, f"the field 'model' is missing; it is one of {', '.join(self.models)}", param="model")
        if name not in self.models:
            raise ApiError(
                404,
                f"the model {name[:100]!r} is not served here; there is {', '.join(self.models)}",
                param=param,
                code="model_not_found",
            )
        return self.models[name]

    async def list_models(self, request: Request) -> Response:
        """Answer /v1/models."""
        described = [await asyncio.to_thread(self._described, model) for model in self.models.values()]
        return JSONResponse({"object": "list", "data": described})

    async def show_model(self, request: Request) -> Response:
        """Answer /v1/models/NAME."""
        model = self._named(request.path_params["name"])
        return JSONResponse(await asyncio.to_thread(self._described, model))

    def _described(self, model: Served) -> dict[str, Any]:
        """Return a model in the form of OpenAI's API, with its context length as in vLLM's server.

        `inside` says whether /inside can read it. `steps` are those that /inside can read, or null if it is no run.
        """
        reader = self.readers[model.name]
        return {
            "id": model.name,
            "object": "model",
            "created": model.created,
            "owned_by": "gpt2",
            "max_model_len": model.config.block_size,
            "inside": reader.refusal is None,
            "steps": None if model.run is None else reader.earlier.steps(),
        }

    async def tokenize(self, request: Request) -> Response:
        """Answer /tokenize, in the form of vLLM's server."""
        body = parse(TokenizeBody, await read_body(request))
        model = self._named(body.model)
        try:
            ids = await asyncio.to_thread(model.tokenizer.encode, body.prompt, True)
        except UserError as error:
            raise ApiError(400, f"prompt: {error}", param="prompt") from None
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": model.config.block_size})

    async def detokenize(self, request: Request) -> Response:
        """Answer /detokenize, in the form of vLLM's server."""
        body = parse(DetokenizeBody, await read_body(request))
        model = self._named(body.model)
        model.require_known(max(body.tokens, default=0), "tokens")
        return JSONResponse({"prompt": await asyncio.to_thread(model.tokenizer.decode, body.tokens)})

    async def show_tokenizer(self, request: Request) -> Response:
        """Answer /tokenizer_info, in the form of vLLM's server; lm-eval's `tokenizer_backend=remote` reads it."""
        special = self._named(request.query_params.get("model")).tokenizer.special
        names = {f"{role}_token": special.named(i) for role, i in special.roles.items()}
        return JSONResponse(names | {"chat_template": special.chat_template})

    # the server

    async def health(self, request: Request) -> Response:
        """Answer /health."""
        return JSONResponse({"status": "ok"})

    async def show_metrics(self, request: Request) -> Response:
        """Answer /metrics."""
        return Response(self.metrics.text(), headers={"Content-Type": self.metrics.content_type})

    async def describe(self, request: Request) -> Response:
        """Answer /openapi.json."""
        return JSONResponse(document(__version__, list(self.models)))

    def _counted(self, answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Return a handler that turns errors into responses and counts all of them."""

        async def handler(request: Request) -> Response:
            try:
                response = await answer(request)
            except ApiError as error:
                response = error.response()
            except (ClientGone, ClientDisconnect):
                response = Response(status_code=CLIENT_GONE)
            endpoint = getattr(request.scope.get("route"), "path", "")
            self.metrics.requests.labels(endpoint, str(response.status_code)).inc()
            return response

        return handler
