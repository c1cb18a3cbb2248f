"""Reads JSON objects from files that may be damaged or edited by hand, and checks each value that is used."""

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from gpt2.errors import UserError

MOST_BYTES = 1 << 25
"""Size of a file, at most: parsed JSON takes up to 25 times as much memory as its text."""
MOST_COUNTED = (1 << 63) - 1
"""Largest integer that counts steps, tokens or bytes."""
SHOWN = 40
"""Characters of a wrong value that a message shows, at most."""


class JsonObject:
    """Holds a JSON object, whose methods return values of the right type or raise a UserError that names the key.

    where: the file, for messages. remedy: what the user can do about a wrong value.
    """

    def __init__(self, values: dict[str, Any], where: str, remedy: str) -> None:
        self.values, self.where, self.remedy = values, where, remedy

    def has(self, key: str) -> bool:
        """Return whether there is a value other than null."""
        return self.values.get(key) is not None

    def integer(self, key: str, least: int = 0, most: int = MOST_COUNTED) -> int:
        """Return an integer from `least` to `most`."""
        value = self._value(key)
        if type(value) is not int or not least <= value <= most:
            self._refuse(key, f"an integer from {least} to {most}" if most < MOST_COUNTED else "a count")
        return value

    def number(self, key: str) -> float:
        """Return a finite number."""
        value = self._value(key)
        if not _is_number(value):
            self._refuse(key, "a finite number")
        return float(value)

    def numbers(self, key: str) -> list[float]:
        """Return a list of finite numbers."""
        value = self._value(key)
        if not isinstance(value, list) or not all(map(_is_number, value)):
            self._refuse(key, "a list of finite numbers")
        return value

    def flag(self, key: str) -> bool:
        """Return true or false."""
        value = self._value(key)
        if not isinstance(value, bool):
            self._refuse(key, "true or false")
        return value

    def text(self, key: str) -> str:
        """Return a string."""
        value = self._value(key)
        if not isinstance(value, str):
            self._refuse(key, "a string")
        return value

    def file_name(self, key: str) -> str:
        """Return the name of a file, without the folder that may stand before it."""
        name = Path(self.text(key)).name
        if not name or "\0" in name or not _is_encodable(name):
            self._refuse(key, "the name of a file")
        return name

    def section(self, key: str) -> "JsonObject":
        """Return an object inside this one."""
        value = self._value(key)
        if not isinstance(value, dict):
            self._refuse(key, "an object")
        return JsonObject(value, f"{self.where}, {key}", self.remedy)

    def sections(self, key: str) -> list["JsonObject"]:
        """Return a list of objects inside this one."""
        value = self._value(key)
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            self._refuse(key, "a list of objects")
        return [JsonObject(entry, f"{self.where}, {key} {i}", self.remedy) for i, entry in enumerate(value)]

    def fail(self, problem: str) -> NoReturn:
        """Raise UserError about the file."""
        raise UserError(f"{self.where} {problem}; {self.remedy}")

    def _value(self, key: str) -> Any:
        if key not in self.values:
            self.fail(f"has no {key}")
        return self.values[key]

    def _refuse(self, key: str, wanted: str) -> NoReturn:
        self.fail(f"has {key}={_shown(self.values[key])}, not {wanted}")


def read_object(path: Path, remedy: str) -> JsonObject:
    """Return the JSON object in a file; `remedy` ends the message of every error.

    Raises FileNotFoundError, and UserError for a file that cannot be read, is too large or holds no JSON object.
    """
    file = JsonObject({}, str(path), remedy)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            file.fail("is not a file")
        with path.open("rb") as opened:
            data = opened.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        file.fail(f"cannot be read ({getattr(error, 'strerror', None) or error})")
    if len(data) > MOST_BYTES:
        file.fail(f"is larger than {MOST_BYTES:,} bytes")
    try:
        values = json.loads(data.decode("utf-8-sig"))
    except RecursionError:
        file.fail("cannot be read (it is nested too deeply)")
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        file.fail(f"cannot be read ({error})")
    except ValueError:  # Python reads no integer of more than 4300 digits
        file.fail("cannot be read (it has an integer with too many digits)")
    if not isinstance(values, dict):
        file.fail(f"holds {_shown(values)}, not an object")
    file.values = values
    return file


def _is_number(value: Any) -> bool:
    if type(value) is int:
        return abs(value) <= MOST_COUNTED
    return isinstance(value, float) and math.isfinite(value)


def _is_encodable(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str:
    """Return a value as JSON, cut where it is long."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if type(value) is int and abs(value) > MOST_COUNTED:
        return "a huge integer"
    text = json.dumps(value[: SHOWN + 1] if isinstance(value, str) else value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"
