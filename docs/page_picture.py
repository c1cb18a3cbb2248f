"""Draw the picture of the page in docs/serving.md: a text that a served model wrote, with a branch.

    python docs/page_picture.py http://127.0.0.1:8000 docs/images/page-write.png

It needs Playwright and Chromium, and uses the page as a reader does.
"""

import shutil
import sys

from playwright.sync_api import Page, sync_playwright

PROMPT = "ROMEO:\nGood morrow, cousin."
SIZE = {"width": 1280, "height": 900}


def draw(tab: Page, path: str) -> None:
    """Write a text, take the second likeliest token in place of one, and take the picture."""
    tab.get_by_label("Prompt").fill(PROMPT)
    tab.get_by_label("Seed").fill("4")
    tab.get_by_role("button", name="Write", exact=True).click()
    tab.locator(".written [data-token='20']").click()
    tab.locator("#view-Write .status", has_text=" s, seed").wait_for()
    tab.keyboard.press("2")
    tab.locator("#view-Write .status", has_text=" s, seed").wait_for()
    tab.get_by_role("list", name="Branches").get_by_role("button").nth(1).wait_for()
    tab.mouse.move(0, 0)
    tab.screenshot(path=path, full_page=True)


with sync_playwright() as started:
    browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    page = browser.new_page(viewport=SIZE)
    page.goto(sys.argv[1])
    draw(page, sys.argv[2])
    browser.close()
