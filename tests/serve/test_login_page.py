"""Signing in with a real browser: the form, the cookie, and the page behind it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from service_process import serving

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import expect, sync_playwright  # noqa: E402

CHROMIUM = Path("/usr/bin/chromium")
KEY = "a-key-that-is-long-enough"


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs Chromium at {CHROMIUM}")
def test_a_person_signs_in_once_and_comes_to_the_page_that_was_asked_for() -> None:
    with serving("--api-key", KEY) as server, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        with browser.new_context(base_url=server.url) as context:
            page = context.new_page()
            wrong: list[str] = []
            page.on("console", lambda said: wrong.append(said.text) if "Content Security" in said.text else None)
            page.goto("/docs?a=b#first")
            expect(page).to_have_url(re.compile(r"/login\?next=docs"))
            page.get_by_label("Key").fill("another-key-of-enough-length")
            page.get_by_role("button", name="Sign in").click()
            expect(page.get_by_role("alert")).to_be_visible()
            page.get_by_label("Key").fill(KEY)
            page.get_by_role("button", name="Sign in").click()
            expect(page).to_have_url(re.compile(r"/docs\?a=b"))
            expect(page.get_by_role("heading", name=re.compile("Image Encoders"))).to_be_visible()
            (cookie,) = context.cookies()
            assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
            page.goto("about:blank")
            page.goto("/docs")
            expect(page).to_have_url(re.compile(r"/docs$"))
            assert page.evaluate("document.cookie") == ""
            assert wrong == []
        browser.close()
