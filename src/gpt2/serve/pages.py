"""Serves the page for people: HTML, a style sheet and ES modules, which need nothing but this server."""

import asyncio
from functools import cache
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gpt2.reporting.markup import stylesheet
from gpt2.serve.errors import ApiError
from gpt2.serve.web import safe_headers

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)
"""The Content-Security-Policy. The browser runs no script but the files below, and asks no other server."""
FOLDERS = {"": "gpt2.serve", "inside/": "gpt2.inside"}
"""Where files are, by the beginning of their name: in the folder `page` of a package."""
KINDS = {"js": "text/javascript", "css": "text/css"}


def routes() -> list[Route]:
    """Return the routes of the page and of its files, which need no API key."""
    return [Route("/", _show), Route("/page/{name:path}", _send)]


async def _show(request: Request) -> Response:
    """Answer with the page."""
    return Response((await asyncio.to_thread(files))[""], media_type="text/html", headers=safe_headers(POLICY))


async def _send(request: Request) -> Response:
    """Answer with a file of the page."""
    name = request.path_params["name"]
    content = (await asyncio.to_thread(files)).get(name)
    if not name or content is None:
        return ApiError(404, f"the page has no file {name[:100]!r}").response()
    return Response(content, media_type=KINDS[name.rpartition(".")[2]], headers=safe_headers(POLICY))


@cache
def files() -> dict[str, str]:
    """Return the files by the names under which they are served; the page itself has the name ''."""
    found: dict[str, str] = {}
    for prefix, package in FOLDERS.items():
        for file in (resources.files(package) / "page").iterdir():
            if file.name.endswith((".js", ".css", ".html")):
                found[prefix + file.name] = file.read_text(encoding="utf-8")
    styles = [stylesheet(), found.pop("inside/page.css"), found.pop("page.css")]
    return found | {"": found.pop("index.html"), "style.css": "\n".join(styles)}
