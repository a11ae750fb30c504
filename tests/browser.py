"""Pages in a real browser: Chromium as the system has it, driven by Playwright, and pictures of them for the docs.

DAGABAAZ_PICTURES=1 has tests save the pictures that docs/images keeps. DAGABAAZ_TEST_CHROMIUM names another program.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.services import miss

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
TAKES_PICTURES = os.environ.get("DAGABAAZ_PICTURES") == "1"
#: Milliseconds that a page may take on a busy machine.
PATIENCE = 30_000


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser of one's own; the test is skipped, in one line, where Chromium is not installed."""
    found = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    program = os.environ.get("DAGABAAZ_TEST_CHROMIUM") or next(found, None)
    if program is None:
        miss("a test in a browser", "Chromium is not installed (Debian: chromium)")
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def save_picture(page: Page, name: str, height: int) -> None:
    """Keep the top of a page, so many pixels of it, in docs/images, where pictures are asked for."""
    if TAKES_PICTURES:
        IMAGES.mkdir(exist_ok=True)
        whole = page.evaluate("document.documentElement.scrollHeight")
        area = {"x": 0, "y": 0, "width": page.viewport_size["width"], "height": min(height, whole)}
        page.screenshot(path=IMAGES / f"{name}.png", animations="disabled", full_page=True, clip=area)
