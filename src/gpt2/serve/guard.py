"""Refuses requests that must not reach the application: of other sites, without the key, or too large."""

import asyncio
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gpt2.errors import UserError
from gpt2.serve.errors import ApiError

LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
"""Host names by which a machine reaches itself."""
OPEN_PATHS = re.compile(r"/|/health|/page/.*")
"""Paths that need no key: the page asks for it."""
ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
"""An origin as browsers send it, or `*` for all of them."""
DEFAULT_PORTS = {"http://": ":80", "https://": ":443"}
"""Ports that browsers leave out of an origin."""
MOST_BYTES = 4 << 20
"""Maximum size of a body. A prompt that fills the context of GPT-2 has a few thousand bytes."""
BODY_SECONDS = 30.0
"""Seconds for a body to arrive."""


@dataclass(frozen=True)
class Guard:
    """Checks every request before the application sees it.

    A page of another site could send requests to this machine, directly or by a name that leads here (DNS
    rebinding). Therefore a request must name one of `hosts`, and its origin must be this server or one of `origins`.
    """

    app: ASGIApp
    hosts: Sequence[str] | None = LOCAL_NAMES
    """Host names that a request may have; None for any."""
    origins: Sequence[str] = ()
    """Origins of other sites whose pages may send requests; `*` is any."""
    api_key: str | None = None
    """The key that a request must have in its header `Authorization: Bearer …`; None for no key."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer with an error."""
        if scope["type"] == "http":
            try:
                self.check(scope["path"], Headers(scope=scope))
            except ApiError as error:
                return await error.response()(scope, receive, send)
        await self.app(scope, receive, send)

    def check(self, path: str, headers: Headers) -> None:
        """Raise ApiError for a request that is refused."""
        host = headers.get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self.hosts is not None and name.lower() not in self.hosts:
            raise ApiError(403, f"the host {name[:100]!r} is not this server; use {self.hosts[0]}")
        origin = headers.get("origin")
        is_allowed = origin in self.origins or "*" in self.origins
        if origin is not None and not is_allowed and origin.partition("://")[2] != host:
            hint = "gpt2 serve allows them with --cors_origin"
            raise ApiError(403, f"pages of {origin[:100]!r} may not use this server; {hint}")
        if self.api_key is not None and not OPEN_PATHS.fullmatch(path):
            scheme, _, key = headers.get("authorization", "").partition(" ")
            given = key.strip().encode("utf-8", "surrogateescape")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given, self.api_key.encode()):
                raise ApiError(
                    401,
                    "this server needs its API key in the header Authorization: Bearer …",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )


def checked_origins(given: Sequence[str]) -> list[str]:
    """Return origins as browsers send them, in lower case and without default ports. Raises UserError for others."""
    for one in given:
        if not ORIGIN.fullmatch(one.lower()):
            raise UserError(f"{one!r} is no origin of a site; write https://example.org:8080, or * for any site")
    origins = [one.lower() for one in given]
    for scheme, port in DEFAULT_PORTS.items():
        origins = [one.removesuffix(port) if one.startswith(scheme) else one for one in origins]
    return origins


async def read_body(request: Request) -> bytes:
    """Return the body of a request. Raises ApiError for one that is too large or arrives too slowly."""
    too_large = ApiError(413, f"the body is larger than {MOST_BYTES:,} bytes", headers={"Connection": "close"})
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > MOST_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > MOST_BYTES:
                    raise too_large
    except TimeoutError:
        message = f"the body did not arrive within {BODY_SECONDS:g} s"
        raise ApiError(408, message, headers={"Connection": "close"}) from None
    return bytes(body)
