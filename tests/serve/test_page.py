"""The search page in headless Chromium, against a stand-in of the service."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from stand_in import StandIn, running

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Browser, Page, expect, sync_playwright  # noqa: E402

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs Chromium at {CHROMIUM}"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def service() -> Iterator[StandIn]:
    with running(StandIn()) as state:
        yield state


@pytest.fixture
def page(browser: Browser, service: StandIn) -> Iterator[Page]:
    with browser.new_context(base_url=service.url, viewport={"width": 1280, "height": 800}) as context:
        page = context.new_page()
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if "Content Security" in said.text else None)
        yield page
        assert wrong == []


def shown(page: Page) -> list[str]:
    """The names of the first row's images."""
    return page.locator("#results li .name").all_inner_texts()[:4]


def test_words_bring_results_and_back_leads_to_what_was_there(page: Page):
    page.goto("/search")
    expect(page.locator("#count")).to_have_text("10,000 images")
    before = shown(page)
    page.get_by_label("Search by words").press_sequentially("red circle", delay=20)
    expect(page.locator("#count")).to_have_text("37 of 10,000 images above the line")
    expect(page).to_have_url(re.compile(r"/search\?q=red\+circle$"))
    assert shown(page) != before
    page.go_back()
    expect(page.locator("#count")).to_have_text("10,000 images")
    expect(page.get_by_label("Search by words")).to_have_value("")
    assert shown(page) == before
