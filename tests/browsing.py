"""What tests of pages in a real browser share: windows, the browser's name, links, and how far colours stand out."""

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 800}
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


def copied_link(tab: "Page") -> str:
    """The link of what the page of a server shows."""
    tab.get_by_role("button", name="Copy link").click()
    tab.locator("main > .status", has_text=re.compile("link is copied|copies only by hand")).wait_for()
    return tab.url


def saved(tab: "Page", path: Path) -> str:
    """The address of the file that the page of a server saves."""
    with tab.expect_download() as file:
        tab.get_by_role("button", name="Save").click()
    file.value.save_as(path)
    return path.as_uri()


def luminance(color: str) -> float:
    """Of an opaque rgb(r, g, b) or color(srgb r g b), relative, by WCAG 2."""
    if color.startswith("color(srgb "):
        parts = [float(part) for part in color.removeprefix("color(srgb ").removesuffix(")").split()]
    else:
        parts = [int(part) / 255 for part in color.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours by WCAG 2, which asks for 4.5 of text and 3 of graphics."""
    darker, brighter = sorted((luminance(one), luminance(other)))
    return (brighter + 0.05) / (darker + 0.05)
