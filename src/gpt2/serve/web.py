"""Makes the HTTP application of a server from its routes."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gpt2.serve.errors import ApiError
from gpt2.serve.guard import LOCAL_NAMES, Guard


def make_app(
    routes: Sequence[Route],
    lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]] | None = None,
    *,
    hosts: Sequence[str] | None = LOCAL_NAMES,
    origins: Sequence[str] = (),
    api_key: str | None = None,
) -> Starlette:
    """Return the application. hosts, origins, api_key: see `Guard`."""
    guards = [Middleware(Guard, hosts=hosts, origins=origins, api_key=api_key)]  # type: ignore[arg-type]
    if origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's client sends a dozen headers of its own
            expose_headers=["Retry-After"],
        )
        guards.insert(0, cors)
    handlers: Mapping[Any, Any] = {HTTPException: _not_found, Exception: _failed}
    return Starlette(routes=list(routes), middleware=guards, lifespan=lifespan, exception_handlers=handlers)


def safe_headers(policy: str) -> dict[str, str]:
    """Return headers that forbid a browser all that a page does not need. policy: its Content-Security-Policy."""
    return {
        "Content-Security-Policy": f"{policy}; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }


async def _not_found(request: Request, error: Exception) -> Response:
    """Answer a request for a path or a method that does not exist."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:200]}: {error.detail}"
    return ApiError(error.status_code, message, headers=error.headers).response()


async def _failed(request: Request, error: Exception) -> Response:
    """Answer a request that met a fault of this program."""
    return ApiError(500, f"the server failed ({type(error).__name__}); its log says more").response()
