"""Sends requests to the HTTP API of a model server, and reads its answers while they arrive.

This is h11 over asyncio's streams: each further layer of a client library takes processor time for every token, which
a server on the same machine would lack.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import h11

from gpt2.errors import UserError, first_line

READ_BYTES, SLOW_BYTES = 1 << 16, 256
"""Maximum number of bytes that are read at once, by a client and by a slow one."""
MOST_ERROR_BYTES = 1 << 16
"""Maximum number of bytes of an error that are kept."""
SHOWN = 300
"""Maximum number of characters of a message."""


class RequestFailed(Exception):
    """A request got no complete answer; the message says why in one line.

    status: the HTTP status of the answer; 0 where there was none, or where the answer broke off.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(" ".join(message.split())[:SHOWN])
        self.status = status


@dataclass(frozen=True)
class Address:
    """An address says where the API of a server is."""

    url: str
    """The address as it was given."""
    host: str
    port: int
    path: str
    """What all paths begin with."""
    is_encrypted: bool
    key: str | None = None
    """API key to send."""


def address_of(url: str, key: str | None = None) -> Address:
    """Return the address of an API, http(s)://HOST:PORT with or without the /v1 at its end. Raises UserError."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host or not url.isascii() or not url.isprintable() or " " in url:
        raise UserError(f"{url[:SHOWN]!r} is no address of a server; write it as http://127.0.0.1:8000")
    if key is not None and not (key.isascii() and key.isprintable()):
        raise UserError("the API key has characters that a header cannot hold; give another one")
    path = parts.path.rstrip("/").removesuffix("/v1") + "/v1"
    default = 443 if parts.scheme == "https" else 80
    return Address(url, host, default if port is None else port, path, parts.scheme == "https", key)


async def ask(address: Address, path: str, content: Any = None, pause: float = 0.0) -> AsyncIterator[bytes]:
    """Send a request, and yield the pieces of its answer's body as they arrive. Closing this ends the connection.

    content: a JSON value to POST; None makes a GET request. pause: seconds to wait before each read, of a few bytes
    then. Raises RequestFailed.
    """
    try:
        connection = await asyncio.open_connection(
            address.host, address.port, ssl=address.is_encrypted or None, limit=SLOW_BYTES if pause else READ_BYTES
        )
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise RequestFailed(f"cannot connect to {address.host} on port {address.port} ({reason})") from None
    reader, writer = connection
    status, error_body, has_ended = 0, b"", False
    try:
        protocol = h11.Connection(h11.CLIENT)
        writer.write(_request(protocol, address, path, content))
        while not isinstance(event := protocol.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                if pause:
                    await asyncio.sleep(pause)
                received = await reader.read(SLOW_BYTES if pause else READ_BYTES)
                has_ended = not received
                protocol.receive_data(received)
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data) and status == 200:
                yield bytes(event.data)
            elif isinstance(event, h11.Data):
                error_body = (error_body + bytes(event.data))[:MOST_ERROR_BYTES]
        if status != 200:
            raise RequestFailed(f"status {status}: {_message(error_body)}", status)
    except h11.ProtocolError as error:
        why = "the connection ended before the answer" if has_ended else f"it is not HTTP ({first_line(error)})"
        raise RequestFailed(f"the answer cannot be read: {why}") from None
    except OSError as error:
        raise RequestFailed(f"the connection broke off ({error.strerror or first_line(error)})") from None
    finally:
        writer.transport.abort()


def _request(protocol: h11.Connection, address: Address, path: str, content: Any) -> bytes:
    """Return the bytes of a request."""
    body = b"" if content is None else json.dumps(content).encode()
    name = f"[{address.host}]" if ":" in address.host else address.host
    headers = [("Host", f"{name}:{address.port}"), ("Accept", "*/*"), ("Connection", "close")]
    if address.key is not None:
        headers.append(("Authorization", f"Bearer {address.key}"))
    if content is not None:
        headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    method = "GET" if content is None else "POST"
    encoded = [(name.encode(), value.encode()) for name, value in headers]
    request = h11.Request(method=method, target=address.path + path, headers=encoded)
    parts = (request, h11.Data(data=body), h11.EndOfMessage())
    return b"".join(protocol.send(part) or b"" for part in parts)


def _message(body: bytes) -> str:
    """Return what the body of an error says: its `message` in the form of OpenAI's API, or else its text."""
    text = body.decode("utf-8", "replace")
    try:
        found = json.loads(text)
    except ValueError:
        return text
    while isinstance(found, dict) and (keys := [key for key in ("error", "message", "detail") if found.get(key)]):
        found = found[keys[0]]
    return found if isinstance(found, str) else text


async def read_json(address: Address, path: str) -> Any:
    """Return the JSON value of a GET request. Raises RequestFailed."""
    body = b"".join([piece async for piece in ask(address, path)])
    try:
        return json.loads(body)
    except ValueError:
        raise RequestFailed(f"the answer to {address.path}{path} is not JSON") from None


async def read_events(
    address: Address, path: str, content: dict[str, Any], pause: float = 0.0
) -> AsyncIterator[dict[str, Any]]:
    """Send a request for a stream, and yield its server-sent events, JSON objects, up to `[DONE]`.

    pause: see `ask`. Raises RequestFailed, also where the stream reports an error or ends early.
    """
    rest = b""
    async with aclosing(ask(address, path, content, pause)) as pieces:  # pyrefly: ignore[bad-specialization]
        async for piece in pieces:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if not line.startswith(b"data:"):
                    continue
                if (data := line[5:].strip()) == b"[DONE]":
                    return
                yield _event(data)
    raise RequestFailed("the stream ended before [DONE]")


def _event(data: bytes) -> dict[str, Any]:
    """Return an event. Raises RequestFailed for one that is not a JSON object, and for an error."""
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise RequestFailed(f"an event is not a JSON object: {data[:SHOWN].decode('utf-8', 'replace')}")
    if event.get("error"):
        raise RequestFailed(f"the stream ended with an error: {_message(data)}")
    return event
