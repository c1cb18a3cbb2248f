"""Describes the API in the OpenAPI format, from the bodies' own definitions."""

from collections.abc import Sequence
from typing import Any

from pydantic.json_schema import models_json_schema

from gpt2.serve.inside import AnalysisBody, CurveBody, PageBody, ReadBody
from gpt2.serve.schema import ChatBody, CompletionBody, DetokenizeBody, Strict, TokenizeBody

BODIES: dict[str, tuple[type[Strict], str]] = {
    "/v1/completions": (CompletionBody, "Continue prompts."),
    "/v1/chat/completions": (ChatBody, "Answer a conversation, with a model that has a chat template."),
    "/tokenize": (TokenizeBody, "Return the token ids of a text."),
    "/detokenize": (DetokenizeBody, "Return the text of token ids."),
    "/inside/read": (ReadBody, "Return the loss of each token of a text, and the likeliest tokens."),
    "/inside/curve": (CurveBody, "Return the losses of a text at each snapshot and checkpoint of a run."),
    "/inside/analysis": (AnalysisBody, "Return losses, attention, logit lens, attribution and patching of a text."),
    "/inside/page": (PageBody, "Return the same as the page of `gpt2 lens`; `stream` is ignored."),
}
READS = {
    "/v1/models": "List the served models.",
    "/v1/models/{name}": "Describe a served model.",
    "/tokenizer_info": "Return the special tokens and the chat template of a model.",
    "/health": "Say that the server runs.",
    "/metrics": "Return figures for Prometheus.",
    "/openapi.json": "Return this description.",
}
ERRORS = {
    "400": "a field is wrong, or the prompt does not fit into the context",
    "401": "the API key is missing or wrong",
    "403": "the host or the origin is not allowed",
    "404": "there is no such model or path",
    "408": "the body did not arrive in time, or the completion took too long",
    "413": "the body is too large",
    "429": "the queue is full; Retry-After says when to try again",
}
EVENTS = "server-sent events, each a JSON object, then [DONE]"


def document(version: str, models: Sequence[str]) -> dict[str, Any]:
    """Return the description of the API as a JSON object. models: the names of those that are served."""
    kinds: list[Any] = [(kind, "validation") for kind, _ in BODIES.values()]
    references, definitions = models_json_schema(kinds, ref_template="#/components/schemas/{model}")
    for definition in definitions["$defs"].values():
        if "model" in definition["properties"] and len(models) == 1:
            definition["properties"]["model"]["enum"] = [*models, None]
        elif "model" in definition["properties"]:
            definition["properties"]["model"]["enum"] = list(models)
            definition["required"] = ["model", *definition.get("required", ())]
    paths: dict[str, Any] = {}
    for path, (kind, summary) in BODIES.items():
        content = {"application/json": {"schema": references[kind, "validation"]}}
        paths[path] = {"post": _operation(path, summary) | {"requestBody": {"required": True, "content": content}}}
    for path, summary in READS.items():
        paths[path] = {"get": _operation(path, summary)}
    name = {"name": "name", "in": "path", "required": True, "schema": {"enum": list(models)}}
    paths["/v1/models/{name}"]["get"]["parameters"] = [name]
    error = {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            }
        },
        "required": ["error"],
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "gpt2 serve", "version": version, "description": "OpenAI's API for GPT-2 models."},
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"] | {"Error": error},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(path: str, summary: str) -> dict[str, Any]:
    """Return the description of an operation, as far as it does not depend on the method."""
    kind = {"/metrics": "text/plain", "/inside/page": "text/html"}.get(path, "application/json")
    content: dict[str, Any] = {kind: {"schema": {"type": "object" if kind == "application/json" else "string"}}}
    if path.endswith(("completions", "/analysis", "/curve")):
        content["text/event-stream"] = {"schema": {"description": EVENTS}}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses = {status: {"description": text, "content": error} for status, text in ERRORS.items()}
    return {"summary": summary, "responses": {"200": {"description": "OK", "content": content}} | responses}
