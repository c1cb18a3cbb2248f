"""Draw the pictures of reports and plots in README and docs/records.md, of a run and another one next to it.

    python docs/report_pictures.py out-shakespeare-char out-higher-lr

It needs Playwright and Chromium.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

import gpt2

IMAGES = Path(__file__).parent / "images"
POINTER = (550, 560)
"""Where the pointer shows the values of the curves."""


def shrink(path: Path) -> None:
    """Keep 256 colours of a picture, which are enough for curves and text."""
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def draw(browser: Browser, page: Path, name: str, width: int, height: int, *, dark: bool = False) -> None:
    """Take the picture of the top of a page; on a wide one of a single run, the pointer is on the curves."""
    tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
    tab.goto(page.as_uri())
    if name == "report-light":
        tab.mouse.move(*POINTER)
    tab.wait_for_timeout(500)  # until the curves and the values are drawn
    tab.screenshot(path=IMAGES / f"{name}.png")
    shrink(IMAGES / f"{name}.png")
    tab.close()


def main(run: str, other: str) -> None:
    """Write the report on one run and on both, and take their pictures; draw the plot of both."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        one, both = Path(folder) / "one.html", Path(folder) / "both.html"
        gpt2.report(run, out=one)
        gpt2.report(run, other, out=both)
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        draw(browser, one, "report-light", 1280, 1140)
        draw(browser, both, "report-dark", 1280, 1330, dark=True)
        draw(browser, one, "report-phone", 390, 1150)
        browser.close()
    gpt2.plot(run, other, out=IMAGES / "plot.png")
    shrink(IMAGES / "plot.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
