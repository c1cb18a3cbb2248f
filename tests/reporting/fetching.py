"""Asks a page as a browser does."""

import http.client


def get(
    address: str, path: str = "", method: str = "GET", host: str | None = None, origin: str | None = None
) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address.removeprefix("http://").rstrip("/"), timeout=30)
    headers = {name: value for name, value in {"Host": host, "Origin": origin}.items() if value is not None}
    connection.request(method, f"/{path}", headers=headers)
    answer = connection.getresponse()
    try:
        return answer.status, answer.read().decode()
    finally:
        connection.close()
