"""The search page in headless Chromium: with clip/demo in a real service, and with a stand-in for what is rare."""

from __future__ import annotations

import csv
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from service_process import Server, serving
from stand_in import HOSTILE, StandIn, key_of, running, scenes

from image_encoders.bulk.run import run
from image_encoders.models import load
from image_encoders.scenes import write_images

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
AXE = Path(__file__).parent / "axe-core" / "axe.min.js"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs Chromium at {CHROMIUM}"),
]
PHONE = {"width": 360, "height": 740}
PATIENCE_S = 120.0  # for a machine that does much else

expect.set_options(timeout=1000 * PATIENCE_S)


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
        page.on("request", lambda asked: wrong.append(asked.url) if not is_own(asked.url, service.url) else None)
        yield page
        assert wrong == []


def is_own(address: str, service: str) -> bool:
    return address.startswith((service, "data:", "blob:"))


def words(page: Page) -> Locator:
    return page.get_by_label("Search by words")


def count(page: Page) -> Locator:
    return page.locator("#count")


def tiles(page: Page) -> Locator:
    return page.locator("#results li:has(a[href])")


def names(page: Page) -> list[str]:
    """The names of the images on top."""
    return page.locator("#results li .name").all_inner_texts()[:4]


def chips(page: Page) -> Locator:
    return page.locator("#terms li")


def answered(page: Page) -> None:
    """Wait until the results are those of the address."""
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")


def eventually(page: Page, condition: Callable[[], bool]) -> None:
    """Wait for what no locator can say."""
    ends = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < ends, "it does not come"
        page.wait_for_timeout(50)


def give_file(page: Page, event: str, name: str, kind: str, content: bytes) -> None:
    """Drop or paste a file as a person does."""
    page.evaluate(
        """([event, name, type, bytes]) => {
            const held = new DataTransfer();
            held.items.add(new File([new Uint8Array(bytes)], name, {type}));
            const target = document.querySelector("#results") ?? document.body;
            const facts = {bubbles: true, cancelable: true};
            const pasted = new ClipboardEvent("paste", {...facts, clipboardData: held});
            if (event === "paste") return target.dispatchEvent(pasted);
            target.dispatchEvent(new DragEvent("dragover", {...facts, dataTransfer: held}));
            if (event === "drop") target.dispatchEvent(new DragEvent("drop", {...facts, dataTransfer: held}));
        }""",
        [event, name, kind, list(content)],
    )


def look_again(page: Page) -> None:
    """Have the page ask for the status now, as it does when somebody comes back to it."""
    page.evaluate("""() => document.dispatchEvent(new Event("visibilitychange"))""")


# ---- words ----


def test_words_bring_results_and_back_leads_to_what_was_there(page: Page):
    page.goto("/search")
    expect(count(page)).to_have_text("10,000 images")
    before = names(page)
    words(page).press_sequentially("red circle", delay=20)
    expect(count(page)).to_have_text("37 of 10,000 images above the line")
    expect(page).to_have_url(re.compile(r"/search\?q=red\+circle$"))
    assert names(page) != before
    page.go_back()
    expect(count(page)).to_have_text("10,000 images")
    expect(words(page)).to_have_value("")
    assert names(page) == before
    page.go_forward()
    expect(words(page)).to_have_value("red circle")
    expect(count(page)).to_have_text("37 of 10,000 images above the line")


def test_a_search_starts_when_typing_pauses(page: Page, service: StandIn):
    page.goto("/search")
    expect(count(page)).to_have_text("10,000 images")
    service.asked.clear()
    words(page).evaluate(  # faster than any pause, on any machine
        """(box) => {
            for (const letter of "a red circle") {
                box.value += letter;
                box.dispatchEvent(new InputEvent("input", {bubbles: true}));
            }
        }"""
    )
    expect(page).to_have_url(re.compile("q=a.red.circle"))
    expect(count(page)).to_have_text(re.compile("37 of"))
    assert {said.partition("&")[0] for said in service.asked} == {"q=a+red+circle"}


def test_enter_ends_what_back_leads_to(page: Page):
    page.goto("/search")
    for said in ("red", "blue"):
        words(page).fill(said)
        words(page).press("Enter")
        expect(page).to_have_url(re.compile(f"q={said}"))
    page.go_back()
    expect(words(page)).to_have_value("red")
    page.go_back()
    expect(words(page)).to_have_value("")


def test_an_older_answer_never_replaces_a_newer_one(page: Page, service: StandIn):
    service.seconds["slow"] = 1.0
    page.goto("/search?q=other")
    expect(count(page)).to_have_text(re.compile("37 of"))
    with page.expect_request(lambda asked: "q=slow" in asked.url):
        words(page).fill("slow")
    words(page).fill("quick")
    expect(page).to_have_url(re.compile("q=quick"))
    answered(page)
    quick = names(page)
    page.wait_for_timeout(1500)
    assert names(page) == quick
    page.goto("/search?q=quick")
    expect(count(page)).to_have_text(re.compile("37 of"))
    assert names(page) == quick


def test_words_are_kept_and_others_subtracted(page: Page, service: StandIn):
    page.goto("/search")
    words(page).fill("beach")
    page.get_by_role("button", name="Keep these words and add more").click()
    words(page).fill("night")
    page.get_by_role("button", name="Subtract these words").click()
    expect(page).to_have_url(re.compile(r"\?q=&q=beach&minus=night$"))
    expect(chips(page)).to_have_count(2)
    page.get_by_role("button", name="Add night").click()
    expect(page).to_have_url(re.compile(r"\?q=&q=beach&q=night$"))
    page.get_by_role("button", name="Remove night").click()
    expect(page).to_have_url(re.compile(r"\?q=&q=beach$"))
    expect(words(page)).to_have_value("")


# ---- examples ----


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_an_image_that_is_dropped_or_pasted_is_searched_by(page: Page, event: str):
    page.goto("/search")
    expect(count(page)).to_have_text("10,000 images")
    give_file(page, event, "beach.jpg", "image/jpeg", scenes()[0])
    expect(page).to_have_url(re.compile(r"\?vector=[\w-]+$"))
    expect(count(page)).to_have_text("37 of 10,000 images above the line")
    expect(chips(page)).to_have_text("beach.jpg")
    expect(chips(page).locator("img")).to_have_attribute("src", re.compile("^data:image/jpeg"))
    found = names(page)
    page.reload()
    expect(chips(page)).to_have_text("beach.jpg")
    expect(count(page)).to_have_text("37 of 10,000 images above the line")
    assert names(page) == found


def test_a_file_over_the_page_shows_where_it_may_be_dropped(page: Page):
    page.goto("/search")
    expect(count(page)).to_have_text("10,000 images")
    give_file(page, "dragover", "beach.jpg", "image/jpeg", scenes()[0])
    expect(page.locator("#drop")).to_have_text("Drop an image or a sound to search by it")
    give_file(page, "drop", "beach.jpg", "image/jpeg", scenes()[0])
    expect(page.locator("#drop")).to_be_hidden()


def test_a_sound_is_searched_by(page: Page):
    page.goto("/search")
    give_file(page, "drop", "waves.wav", "audio/wav", b"RIFF")
    expect(chips(page)).to_have_text("♪ waves.wav")
    expect(page).to_have_url(re.compile(r"\?vector="))


def test_files_are_picked_and_added_to_words(page: Page):
    page.goto("/search?q=night")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Search by an image or a sound").click()
    files = [
        {"name": "one.jpg", "mimeType": "image/jpeg", "buffer": scenes()[0]},
        {"name": "two.jpg", "mimeType": "image/jpeg", "buffer": scenes()[1]},
    ]
    chooser.value.set_files(files)  # type: ignore[arg-type]
    expect(chips(page)).to_have_count(2)
    expect(page).to_have_url(re.compile(r"\?q=night&vector=[\w-]+&vector=[\w-]+$"))


def test_a_file_that_cannot_be_embedded_is_refused_by_name(page: Page):
    page.goto("/search")
    expect(count(page)).to_have_text("10,000 images")
    give_file(page, "drop", "torn.jpg", "image/jpeg", b"broken")
    expect(page.get_by_role("alert")).to_contain_text("torn.jpg: The JPEG ends after 12 of 900 bytes.")
    expect(chips(page)).to_have_count(0)
    expect(count(page)).to_have_text("10,000 images")
    expect(tiles(page).first).to_be_visible()  # what was found before stays
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(tiles(page).first).to_be_visible()


def test_more_like_this_and_examples_as_chips(page: Page):
    page.goto("/search?q=beach")
    tile = tiles(page).nth(2)
    name = tile.locator(".name").inner_text()
    tile.hover()
    tile.get_by_role("button", name=f"More like {name}").click()
    expect(page).to_have_url(re.compile(r"\?like=[0-9a-f]{64}$"))
    expect(chips(page)).to_have_text(name)
    expect(words(page)).to_have_value("")
    answered(page)
    tiles(page).nth(3).locator("a").click()
    page.get_by_role("dialog").get_by_role("button", name="Subtract").click()
    expect(page).to_have_url(re.compile(r"\?like=[0-9a-f]{64}&unlike=[0-9a-f]{64}$"))
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(chips(page)).to_have_count(2)
    expect(chips(page).nth(1)).to_have_class("minus")
    chips(page).nth(1).get_by_role("button", name=re.compile("^Add ")).click()
    expect(page).to_have_url(re.compile(r"\?like=[0-9a-f]{64}&like=[0-9a-f]{64}$"))
    chips(page).nth(0).get_by_role("button", name=re.compile("^Remove ")).click()
    expect(chips(page)).to_have_count(1)


# ---- order, groups and filters ----


def test_the_address_holds_all_that_was_set(page: Page):
    page.goto("/search?q=beach")
    page.get_by_label("Sort").select_option(label="Newest")
    expect(page).to_have_url(re.compile("sort=newest"))
    page.get_by_label("Group").select_option(label="Month")
    expect(page).to_have_url(re.compile("group=month"))
    expect(page.locator("#results h2").first).to_contain_text("December 2024")
    page.get_by_role("button", name="Filters").click()
    page.get_by_label("Folder", exact=True).fill("2023")
    page.get_by_label("Folder", exact=True).press("Tab")
    page.get_by_label("Least width").fill("3000")
    page.get_by_label("Least width").press("Tab")
    expect(chips(page)).to_have_text(["in 2023", "width from 3000"])
    expect(page).to_have_url(re.compile(r"\?q=beach&folder=2023&min_width=3000&sort=newest&group=month$"))
    address = page.url
    answered(page)
    title = page.locator("#results h2").first.inner_text()
    found = names(page)
    page.goto("/search")
    page.goto(address)
    expect(page.get_by_label("Sort")).to_have_value("newest")
    expect(page.get_by_label("Group")).to_have_value("month")
    expect(page.locator("#results h2").first).to_have_text(title)
    assert names(page) == found
    page.get_by_role("button", name="Remove in 2023").click()
    expect(page).to_have_url(re.compile(r"\?q=beach&min_width=3000&sort=newest&group=month$"))


def test_comparisons_with_metadata_are_added_one_by_one_and_are_in_the_address(page: Page):
    page.goto("/search?where=width+%3E%3D+1000")
    expect(chips(page)).to_have_text(["where width >= 1000"])
    page.get_by_role("button", name="Filters").click()
    field = page.get_by_label("Metadata")
    expect(field).to_have_value("")
    field.fill("height >= 2000")
    field.press("Enter")
    expect(chips(page)).to_have_text(["where width >= 1000", "where height >= 2000"])
    expect(page).to_have_url(re.compile(r"\?where=width\+%3E%3D\+1000&where=height\+%3E%3D\+2000$"))
    expect(field).to_have_value("")
    page.get_by_label("Least width").fill("3000")
    page.get_by_label("Least width").press("Tab")
    expect(chips(page)).to_have_text(["where width >= 1000", "where height >= 2000", "width from 3000"])
    page.get_by_role("button", name="Remove where width >= 1000").click()
    expect(page).to_have_url(re.compile(r"\?where=height\+%3E%3D\+2000&min_width=3000$"))
    page.get_by_role("button", name="Clear filters").click()
    expect(page).to_have_url(re.compile(r"/search$"))


def test_groups_hold_what_is_above_the_line(page: Page):
    page.goto("/search?q=beach&group=folder")
    expect(page.locator("#results h2").first).to_be_visible()
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    expect(page.locator("#results li.low")).to_have_count(0)
    expect(count(page)).to_have_text("37 images above the line")
    expect(page.locator("#results h2 small").first).to_have_text(re.compile(r"^\d images?$"))


def test_all_images_in_groups_come_as_one_scrolls(page: Page):
    page.goto("/search?group=folder&sort=path")
    expect(page.locator("#results h2").first).to_be_visible()
    last = page.locator("#results h2", has_text="2024/album 7")

    def there() -> bool:
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        return last.is_visible()

    eventually(page, there)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    expect(count(page)).to_have_text("10,000 images")


def test_filters_that_fit_nothing_are_said_and_cleared(page: Page):
    page.goto("/search?folder=nowhere")
    expect(page.get_by_role("heading", name="No image fits these filters")).to_be_visible()
    page.get_by_role("button", name="Filters").click()
    page.get_by_role("button", name="Clear filters").click()
    expect(count(page)).to_have_text("10,000 images")
    expect(page).to_have_url(re.compile(r"/search$"))


# ---- what results say ----


def test_the_line_is_drawn_where_results_are_no_better_than_chance(page: Page):
    page.goto("/search?q=beach")
    heading = page.get_by_role("heading", name="Below the line")
    expect(tiles(page).first).to_be_visible()
    page.mouse.wheel(0, 1200)
    expect(heading).to_be_visible()
    above = page.locator("#results section:not(.low) li")
    below = page.locator("#results section.low li").first
    expect(above.last).to_have_attribute("aria-setsize", "37")
    expect(below).to_have_attribute("aria-setsize", "9963")
    expect(below).to_contain_text("No better than chance")
    expect(above.last.locator(".bar")).to_have_attribute(
        "title", re.compile(r"match: score 0\.\d{3}; just any image here has about 0\.\d{3}, and by")
    )


def test_a_search_without_any_good_result_says_so(page: Page, service: StandIn):
    service.relevant = 0
    page.goto("/search?q=beach")
    expect(page.get_by_role("heading", name="No image is above the line")).to_be_visible()
    expect(count(page)).to_have_text("None of 10,000 images above the line")
    expect(tiles(page).first).to_be_visible()


def test_names_are_text_whatever_they_hold(page: Page):
    page.goto("/search?sort=path&q=beach")
    page.goto("/search#failures")
    expect(page.locator("tbody th").first).to_have_text(HOSTILE[0])
    for place, name in enumerate(HOSTILE):
        page.goto(f"/search?like={key_of(place)}")
        first = tiles(page).first
        shown = re.sub(r"[\x00-\x1f\x7f\u202a-\u202e]", "\ufffd", name)
        expect(first.locator(".name")).to_have_text(shown)
        first.locator("a").click()
        expect(page.get_by_role("dialog").locator("h2")).to_have_text(shown)
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_be_hidden()  # and it is back where it was opened
        expect(page).to_have_title(re.compile("Like these – Holidays"))
    assert page.evaluate("document.querySelectorAll('#results script, #results svg[onload]').length") == 0


# ---- ten thousand ----


def test_ten_thousand_results_hold_few_elements_and_end_at_the_last(page: Page):
    page.goto("/search")
    tiles(page).first.locator("a").focus()
    page.keyboard.press("End")
    last = page.locator("#results li[data-position='9999']")
    expect(last.locator("a")).to_be_focused()
    expect(last.locator(".name")).to_have_text(re.compile("^IMG_"))
    page.keyboard.press("Home")
    expect(page.locator("#results li[data-position='0'] a")).to_be_focused()
    height = page.evaluate("document.body.scrollHeight")
    most = 0
    for step in range(40):
        page.evaluate("y => scrollTo(0, y)", height * step / 40)
        page.wait_for_timeout(20)
        most = max(most, page.locator("#results li").count())
    assert most < 150


def test_a_jump_into_the_middle_fetches_only_what_is_seen(page: Page, service: StandIn):
    page.goto("/search?q=beach")
    expect(tiles(page).first).to_be_visible()
    service.asked.clear()
    page.evaluate("scrollTo(0, document.body.scrollHeight / 2)")
    expect(tiles(page).first).to_have_attribute("data-position", re.compile(r"^[45]\d{3}$"))
    expect(page.locator("#results li:not(:has(a[href]))")).to_have_count(0)
    offsets = {re.search(r"offset=(\d+)", said)[1] for said in service.asked}  # type: ignore[index]
    assert 1 <= len(offsets) <= 2
    assert all(4000 <= int(offset) <= 6000 for offset in offsets)


def test_back_leads_to_where_one_was(page: Page):
    page.goto("/search")
    expect(tiles(page).first).to_be_visible()
    page.evaluate("scrollTo(0, 30000)")
    tile = page.locator("#results li:has(a[href])[data-position='525']")
    name = tile.locator(".name").inner_text()
    tile.hover()
    before = page.evaluate("scrollY")
    tile.get_by_role("button", name=f"More like {name}").click()
    expect(count(page)).to_have_text(re.compile("above the line"))
    assert page.evaluate("scrollY") < 100
    page.go_back()
    expect(count(page)).to_have_text("10,000 images")
    assert abs(page.evaluate("scrollY") - before) < 5
    expect(page.get_by_text(name)).to_be_in_viewport()


# ---- one image, large ----


def test_an_image_is_shown_large_and_its_path_copied(page: Page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto("/search?q=beach")
    dialog = page.get_by_role("dialog")
    first = tiles(page).nth(0).locator(".name").inner_text()
    second = tiles(page).nth(1).locator(".name").inner_text()
    tiles(page).nth(0).locator("a").click()
    expect(dialog.locator("h2")).to_have_text(first)
    expect(dialog.get_by_role("button", name="The image before")).to_be_hidden()
    expect(dialog).to_contain_text("just any image here has about")
    page.keyboard.press("ArrowRight")
    expect(dialog.locator("h2")).to_have_text(second)
    dialog.get_by_role("button", name="Copy the path").click()
    expect(dialog.get_by_role("button", name="Copy the path")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()").endswith(second)
    address = page.url
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page).to_have_url(re.compile(r"\?q=beach$"))
    expect(tiles(page).nth(1).locator("a")).to_be_focused()
    page.goto("/search")
    page.goto(address)
    expect(dialog.locator("h2")).to_have_text(second)
    page.keyboard.press("Escape")
    expect(page).to_have_url(re.compile(r"\?q=beach$"))


def test_a_link_to_an_image_that_is_not_among_the_first_results_shows_it(page: Page):
    page.goto(f"/search?q=beach#image={key_of(4321)}")
    expect(page.get_by_role("dialog").locator("h2")).to_have_text("IMG_04321.jpg")
    page.goto(f"/search?q=beach#image={'0' * 64}")
    expect(page).to_have_url(re.compile(r"\?q=beach$"))


def test_a_file_that_is_gone_is_said_to_be(page: Page):
    page.goto(f"/search#image={key_of(9)}")
    expect(page.get_by_role("dialog")).to_contain_text("The file is gone, or holds another image by now.")


def test_where_paths_are_hidden_the_key_is_shown(page: Page, service: StandIn):
    service.show_paths = False
    page.goto(f"/search#image={key_of(100)}")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(key_of(100))
    expect(dialog).to_contain_text("2 other files of the same bytes")
    expect(dialog).not_to_contain_text("/photos")
    expect(dialog.get_by_role("button", name="Copy the key")).to_be_visible()


# ---- selecting ----


def download(page: Page, button: str) -> str:
    with page.expect_download() as started:
        page.get_by_role("button", name=button).click()
    return started.value.path().read_text(encoding="utf-8")


def test_images_are_selected_and_their_list_downloaded(page: Page):
    page.goto("/search?q=beach")
    tiles(page).nth(0).hover()
    tiles(page).nth(0).get_by_role("checkbox").check()
    tiles(page).nth(3).locator("a").click(modifiers=["Shift"])
    expect(page.locator("#selected")).to_have_text("4 selected")
    tiles(page).nth(1).locator("a").click(modifiers=["Control"])
    expect(page.locator("#selected")).to_have_text("3 selected")
    wanted = [tiles(page).nth(place).locator(".name").inner_text() for place in (0, 2, 3)]
    listed = json.loads(download(page, "JSON"))
    assert sorted(row["name"] for row in listed) == sorted(wanted)
    assert set(listed[0]) >= {"key", "path", "score", "above", "width", "height", "bytes", "taken"}
    rows = list(csv.DictReader(download(page, "CSV").splitlines()))
    assert [row["name"] for row in rows] == [row["name"] for row in listed]
    assert [float(row["score"]) for row in rows] == [row["score"] for row in listed]
    words(page).fill("others")  # what is selected stays so, whatever is searched for
    expect(page).to_have_url(re.compile("others"))
    expect(page.locator("#selected")).to_have_text("3 selected")
    page.get_by_role("button", name="Clear the selection").click()
    expect(page.locator("#selection")).to_be_hidden()


def test_images_are_selected_by_keyboard(page: Page):
    page.goto("/search?q=beach")
    tiles(page).first.locator("a").focus()
    page.keyboard.press("Space")
    expect(page.locator("#selected")).to_have_text("1 selected")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Shift+Space")
    columns = page.evaluate("getComputedStyle(document.querySelector('#results li')).width")
    across = round(page.locator("#results").bounding_box()["width"] / (float(columns[:-2]) + 16))  # type: ignore[index]
    expect(page.locator("#selected")).to_have_text(f"{across + 1} selected")
    page.keyboard.press("Escape")
    expect(page.locator("#selection")).to_be_hidden()


def test_a_range_up_to_an_image_that_was_not_fetched_yet_is_selected(page: Page):
    page.goto("/search")
    tiles(page).first.locator("a").focus()
    page.keyboard.press("Space")
    page.route("**/search.json?*", lambda route: None)  # which holds them
    page.evaluate("scrollTo(0, 16000)")
    expect(page.locator("#results li[data-position='0']")).to_have_count(1)  # it has the focus
    last = page.locator("#results li[data-position='277']")
    expect(last).to_be_visible()
    last.locator("a").click(modifiers=["Shift"])
    expect(page.locator("#selected")).to_have_text("1 selected")
    page.unroute("**/search.json?*")  # which lets go on what was held
    expect(page.locator("#selected")).to_have_text("278 selected")


def test_a_list_for_spreadsheets_holds_no_formula(page: Page):
    number = next(place for place, name in enumerate(HOSTILE) if name.startswith("="))
    page.goto(f"/search?like={key_of(number)}")
    tiles(page).first.locator("a").focus()
    page.keyboard.press("Space")
    (row,) = csv.DictReader(download(page, "CSV").splitlines())
    assert row["name"] == f"'{HOSTILE[number]}"
    assert json.loads(download(page, "JSON"))[0]["name"] == HOSTILE[number]


# ---- failures and the service ----


def test_failures_are_listed_with_their_reasons(page: Page):
    page.goto("/search")
    page.get_by_role("link", name="230 failed").click()
    expect(page.get_by_role("heading", name="Images that could not be embedded")).to_be_focused()
    expect(page.locator("tbody tr")).to_have_count(100)
    expect(page.locator("tbody tr").first).to_contain_text("The JPEG ends after 12 of 900 bytes.")
    page.get_by_role("button", name="Show more").click()
    expect(page.locator("tbody tr")).to_have_count(200)
    page.get_by_role("button", name="Show more").click()
    expect(page.locator("tbody tr")).to_have_count(230)
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()
    page.go_back()
    expect(tiles(page).first).to_be_visible()


def test_a_running_embedding_is_followed(page: Page, service: StandIn):
    service.images = 0
    service.run = {"state": "looking", "total": None, "done": 0, "failed": 0, "rate": 0, "eta": None, "message": ""}
    page.goto("/search")
    expect(page.get_by_text("Looking for images")).to_be_visible()
    expect(page.get_by_role("heading", name="The first images are on their way")).to_be_visible()
    service.run = {
        "state": "embedding",
        "total": 400,
        "done": 100,
        "failed": 3,
        "rate": 81.5,
        "eta": 125.0,
        "message": "",
    }
    service.images = 100
    said = "Embedding 100 of 400 images, 81.5 a second, 3 failed, about 2 minutes left"
    expect(page.get_by_text(said)).to_be_visible()
    expect(page.get_by_role("progressbar")).to_have_attribute("value", "103")
    expect(count(page)).to_have_text("100 images")  # the first ones appear by themselves
    service.images = 150
    page.get_by_role("button", name="Show 50 new images").click()
    expect(count(page)).to_have_text("150 images")
    page.get_by_role("link", name="Service").click()
    expect(page.locator("#counts")).to_contain_text(re.compile(r"Embedded\s*150"))
    expect(page.locator("#counts")).to_contain_text(re.compile(r"Failed\s*230"))
    expect(page.locator("#counts")).to_contain_text(re.compile(r"Not yet looked at\s*297"))
    service.run = None
    expect(page.locator("#run")).to_be_hidden()


def test_images_that_were_deleted_leave_the_page_on_request(page: Page, service: StandIn):
    page.goto("/search")
    expect(count(page)).to_have_text("10,000 images")
    expect(page.locator("#service-said")).to_have_text("clip/stand-in")  # the number of images is known
    service.images = 9_998
    look_again(page)
    page.get_by_role("button", name="Hide 2 deleted images").click()
    expect(count(page)).to_have_text("9,998 images")
    expect(page.locator("#fresh")).to_be_hidden()


def test_a_folder_out_of_reach_is_said_and_its_images_come_back_with_it(page: Page, service: StandIn):
    service.images, service.reachable = 3, False
    message = "the files of 3 images are out of reach, so nothing is removed"
    service.run = {"state": "paused", "total": 3, "done": 0, "failed": 0, "rate": 0, "eta": None, "message": message}
    page.goto("/search")
    said = "Paused: the files of 3 images are out of reach, so nothing is removed."
    expect(page.locator("#run p")).to_have_text(said)
    expect(page.get_by_role("progressbar")).to_be_hidden()
    expect(tiles(page)).to_have_count(3)
    expect(page.locator("#results img.there")).to_have_count(0)
    service.reachable, service.run = True, {**service.run, "state": "following", "message": ""}
    look_again(page)
    expect(page.locator("#results img.there")).to_have_count(3)
    expect(page.locator("#run")).to_be_hidden()


def test_the_list_of_failures_follows_their_number(page: Page, service: StandIn):
    service.failures = 2
    page.goto("/search#failures")
    expect(page.locator("tbody tr")).to_have_count(2)
    expect(page.get_by_role("link", name="2 failed")).to_be_visible()
    service.failures = 5
    look_again(page)
    expect(page.locator("tbody tr")).to_have_count(5)


def test_throughput_and_latency_are_asked_for_only_while_they_are_seen(page: Page):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "status.json" in request.url else None)
    page.goto("/search#service")
    expect(page.locator("#figures")).to_contain_text(re.compile(r"Requests\s*12\.5 /s"))
    expect(page.locator("#figures")).to_contain_text(re.compile(r"Median latency\s*18\.3 ms"))
    eventually(page, lambda: len(asked) >= 3)
    page.evaluate(
        """() => {
            Object.defineProperty(document, "hidden", {value: true, configurable: true});
            document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    page.wait_for_timeout(1000)
    asked.clear()
    page.wait_for_timeout(2500)
    assert asked == []


# ---- what cannot work, and what goes wrong ----


def test_an_empty_collection_says_how_to_fill_it(page: Page, service: StandIn):
    service.images = 0
    page.goto("/search")
    expect(page.get_by_role("heading", name="Nothing is embedded yet")).to_be_visible()
    expect(page.get_by_text("image-encoders encode FOLDER")).to_be_visible()


def test_a_folder_without_images_fills_the_page_once_it_has_some(page: Page, service: StandIn):
    service.images, service.collection, service.modalities = 0, False, []
    service.broken[""] = (404, "nothing has been embedded yet: the model is being loaded")
    service.run = {"state": "looking", "total": None, "done": 0, "failed": 0, "rate": 0, "eta": None, "message": ""}
    page.goto("/search")
    expect(page.get_by_role("alert")).to_contain_text("Nothing has been embedded yet: the model is being loaded")
    expect(words(page)).to_be_visible()  # whether the model takes words is not known yet
    service.broken.clear()
    service.run, service.collection, service.modalities = {**service.run, "state": "following"}, True, ["image", "text"]
    expect(page.get_by_role("heading", name="No image in the folder yet")).to_be_visible()
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.get_by_text("image-encoders encode")).to_be_hidden()
    service.images = 3
    look_again(page)
    expect(count(page)).to_have_text("3 images")
    expect(tiles(page)).to_have_count(3)


def test_a_model_without_words_has_no_box_for_them(page: Page, service: StandIn):
    service.modalities = ["image"]
    page.goto("/search")
    expect(page.get_by_text("Drop or paste an image: clip/stand-in has no text tower")).to_be_visible()
    expect(words(page)).to_be_hidden()
    expect(page.get_by_role("button", name="Search by an image", exact=True)).to_be_visible()
    give_file(page, "drop", "waves.wav", "audio/wav", b"RIFF")
    expect(page.get_by_role("alert")).to_contain_text(
        "♪ waves.wav: clip/stand-in has no audio tower, so it cannot search by a sound."
    )


def test_a_refused_search_says_why_and_the_next_one_works(page: Page, service: StandIn):
    service.broken["boom"] = (422, "the words are longer than the model takes")
    page.goto("/search?q=boom")
    expect(page.get_by_role("alert")).to_contain_text("The words are longer than the model takes.")
    expect(page.locator("#results")).to_be_hidden()
    words(page).fill("beach")
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(tiles(page).first).to_be_visible()


def test_a_busy_service_is_asked_again(page: Page, service: StandIn):
    service.broken["beach"] = (429, "12 inputs are waiting, of at most 8; retry in about 1.0 seconds")
    page.goto("/search?q=beach")
    expect(page.get_by_role("alert")).to_contain_text("12 inputs are waiting")
    service.broken.clear()
    expect(tiles(page).first).to_be_visible()
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_service_that_ended_is_said_to_not_answer(page: Page):
    page.goto("/search")
    expect(tiles(page).first).to_be_visible()
    page.route("**/search.json*", lambda route: route.abort())
    words(page).fill("beach")
    expect(page.get_by_role("alert")).to_contain_text("The service does not answer.")
    page.unroute("**/search.json*")
    expect(tiles(page).first).to_be_visible()


def test_who_has_no_key_signs_in_and_is_led_to_the_search(page: Page, service: StandIn):
    service.key = "right key"
    page.goto("/search?q=beach", wait_until="commit")  # it may lead to the login before it is loaded
    expect(page).to_have_url(re.compile("/login"))
    expect(page.get_by_label("Key")).to_be_visible()
    assert audit(page) == []
    page.get_by_label("Key").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("That is not a key of this service.")
    page.goto("/search?q=beach", wait_until="commit")
    expect(page.get_by_role("alert")).to_be_hidden()  # of the login before
    page.get_by_label("Key").fill("right key")
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(re.compile(r"/search\?q=beach$"))
    expect(tiles(page).first).to_be_visible()


def test_the_login_leads_to_no_other_host(page: Page):
    for target in ("https%3A%2F%2Fexample.com", "%2F%2Fexample.com", "%2F%5Cexample.com", "javascript%3Aalert(1)"):
        page.goto(f"/login?next={target}")
        expect(page.locator("[name=next]")).to_have_value("search")
    page.goto("/login?next=search%3Fq%3D%22%3E%3Cscript%3Ealert(1)%3C/script%3E%23failures")
    expect(page.locator("[name=next]")).to_have_value('search?q="><script>alert(1)</script>#failures')


# ---- for everyone ----


def audit(page: Page) -> list[str]:
    """What axe-core finds: the rule, and where."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = page.evaluate("axe.run().then((result) => result.violations)")
    return [f"{rule['id']}: {rule['nodes'][0]['html'][:150]}" for rule in found]


VIEWS = {
    "all images": "/search",
    "a search": "/search?q=beach",
    "below the line": "/search?q=beach",
    "chips and groups": f"/search?q=beach&minus=night&like={key_of(3)}&folder=2024&group=month",
    "one image": f"/search?q=beach#image={key_of(3)}",
    "failures": "/search#failures",
    "service": "/search#service",
    "nothing found": "/search?folder=nowhere",
    "an error": "/search?q=boom",
    "selected": "/search?q=beach",
}


@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing_in_light_or_dark_and_a_phone_scrolls_one_way(page: Page, service: StandIn, view: str):
    service.broken["boom"] = (422, "no")
    service.run = {"state": "embedding", "total": 9, "done": 1, "failed": 0, "rate": 1, "eta": 9, "message": ""}
    page.emulate_media(reduced_motion="reduce")
    page.goto(VIEWS[view])
    expect(page.locator("#run")).to_be_visible()
    if view not in ("nothing found", "an error", "failures", "service"):
        expect(page.locator("#results img.there").first).to_be_attached()
    if view == "one image":
        expect(page.get_by_role("dialog")).to_be_visible()
    if view == "failures":
        expect(page.locator("tbody tr")).to_have_count(100)
    if view == "below the line":
        page.evaluate("scrollTo(0, 1500)")
        expect(page.locator("#results section.low img.there").first).to_be_attached()
    if view == "selected":
        tiles(page).first.locator("a").focus()
        page.keyboard.press("Space")
        expect(page.locator("#selected")).to_have_text("1 selected")
    if view == "chips and groups":
        page.get_by_role("button", name="Filters").click()
    assert audit(page) == []
    page.emulate_media(color_scheme="dark")
    assert audit(page) == []
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    eventually(page, lambda: page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"])
    assert audit(page) == []
    if view == "a search":
        left = {box["x"] for box in (tile.bounding_box() for tile in tiles(page).all()[:6]) if box}
        assert len(left) == 2


def test_who_opens_the_page_can_type_at_once_and_whoever_opens_a_search_sees_it(page: Page):
    page.goto("/search")
    expect(words(page)).to_be_focused()
    page.goto("/search?q=beach")
    expect(tiles(page).first).to_be_visible()
    expect(words(page)).not_to_be_focused()


def test_the_page_is_used_by_keyboard_alone(page: Page):
    page.goto("/search?q=beach")
    expect(tiles(page).first).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the results")).to_be_focused()
    expect(page.get_by_role("link", name="Skip to the results")).to_be_in_viewport()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(tiles(page).first.locator("a")).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    expect(dialog.get_by_role("button", name="More like this")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("like="))
    expect(tiles(page).first.locator("a")).to_be_focused()
    page.keyboard.press("/")
    expect(words(page)).to_be_focused()
    words(page).press("ArrowDown")
    expect(tiles(page).first.locator("a")).to_be_focused()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_the_number_of_results_is_announced(page: Page):
    page.goto("/search")
    expect(page.get_by_role("status").filter(has_text="10,000 images")).to_be_visible()


# ---- the real thing ----

KEY = "a key that nobody guesses"
RED = ("a red circle on a white background", "a blue square on a black background")


@pytest.fixture(scope="module")
def scenes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of drawn scenes, beside its collection."""
    place = tmp_path_factory.mktemp("page")
    write_images(place / "photos", 120, seed=7)
    run([place / "photos"], load("clip/demo", precision="float32"), place / "holidays")
    return place


@pytest.fixture(scope="module")
def real(scenes_folder: Path) -> Iterator[Server]:
    with serving("--collection", str(scenes_folder / "holidays"), "--api-key", KEY) as server:
        yield server


@pytest.fixture
def visitor(browser: Browser, real: Server) -> Iterator[Page]:
    """A browser that has signed in."""
    with browser.new_context(base_url=real.url, viewport={"width": 1280, "height": 800}) as context:
        page = context.new_page()
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if "Content Security" in said.text else None)
        page.on("request", lambda asked: wrong.append(asked.url) if not is_own(asked.url, real.url) else None)
        page.goto("/search?sort=path")
        page.get_by_label("Key").fill("wrong")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("That is not a key of this service.")
        page.get_by_label("Key").fill(KEY)
        page.get_by_role("button", name="Sign in").click()
        expect(page).to_have_url(re.compile(r"/search\?sort=path$"))
        expect(count(page)).to_have_text("120 images")
        yield page
        assert wrong == []


def test_a_person_signs_in_once_and_comes_to_the_page_that_was_asked_for(browser: Browser, real: Server):
    with browser.new_context(base_url=real.url) as context:
        page = context.new_page()
        wrong: list[str] = []
        page.on("console", lambda said: wrong.append(said.text) if "Content Security" in said.text else None)
        page.goto("/docs?a=b#first")
        expect(page).to_have_url(re.compile(r"/login\?next=docs"))
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


def test_a_real_service_is_searched_by_words_and_by_a_dropped_image(visitor: Page, scenes_folder: Path, real: Server):
    page = visitor
    for said in RED:
        page.goto("/search")
        words(page).fill(said)
        expect(count(page)).to_have_text(re.compile(r"^(\d+|None) of 120 images above the line$"))
        with real.client(headers={"X-API-Key": KEY}) as client:
            answer = client.get("/search.json", params={"q": said}).json()
        assert names(page) == [hit["name"] for hit in answer["hits"][:4]]
        expect(page.locator("#results img.there").first).to_be_visible()
    best = tiles(page).first.locator(".name").inner_text()
    path = next((scenes_folder / "photos").rglob(best))
    words(page).blur()  # what is typed next does not replace these words, however long the upload takes
    give_file(page, "drop", "what I look for.jpg", "", path.read_bytes())
    words(page).fill("")
    expect(page).to_have_url(re.compile(r"\?vector=[\w-]+$"))
    expect(chips(page)).to_have_text("what I look for.jpg")
    expect(tiles(page).first.locator(".name")).to_have_text(best)
    expect(tiles(page).first).to_contain_text("match")
    page.go_back()
    page.go_back()
    expect(words(page)).to_have_value(RED[1])
    expect(chips(page)).to_have_count(0)
    expect(tiles(page).first.locator(".name")).to_have_text(best)


def test_a_real_image_is_shown_large_and_more_like_it_found(visitor: Page, scenes_folder: Path):
    page = visitor
    page.goto("/search?q=a+yellow+star")
    name = tiles(page).first.locator(".name").inner_text()
    tiles(page).first.locator("a").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(str(next((scenes_folder / "photos").rglob(name))))
    eventually(page, lambda: page.evaluate("document.querySelector('dialog img').naturalWidth") > 90)
    dialog.get_by_role("button", name="More like this").click()
    expect(tiles(page).first.locator(".name")).to_have_text(name)
    expect(chips(page)).to_have_text(name)
    page.get_by_label("Group").select_option("folder")
    expect(page.locator("#results h2").first).to_contain_text("album-")
    page.get_by_role("button", name="Filters").click()
    page.get_by_label("Folder", exact=True).fill("album-3")
    page.get_by_label("Folder", exact=True).press("Enter")
    expect(page.locator("#results h2 bdi, #results h2")).to_have_count(1)
    expect(page.locator("#results h2").first).to_contain_text("album-3")


def test_real_failures_and_figures_are_shown(visitor: Page):
    page = visitor
    page.get_by_role("link", name="2 failed").click()
    expect(page.locator("tbody tr")).to_have_count(2)
    expect(page.locator("tbody")).to_contain_text("breaks-off.jpg")
    expect(page.locator("tbody")).to_contain_text("truncated")
    page.get_by_role("link", name="Service").click()
    expect(page.locator("#service-said")).to_have_text("clip/demo")
    expect(page.locator("#counts")).to_contain_text(re.compile(r"Embedded\s*120"))
    expect(page.locator("#figures")).to_contain_text(re.compile(r"Requests\s*[\d.]+"))


def test_what_a_real_service_refuses_is_said(visitor: Page):
    page = visitor
    give_file(page, "drop", "notes.txt", "text/plain", b"These are no pixels.")
    expect(page.get_by_role("alert")).to_contain_text("notes.txt: ")
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_role("alert")).to_be_hidden()
    give_file(page, "drop", "waves.wav", "audio/wav", b"RIFF")
    expect(page.get_by_role("alert")).to_contain_text("clip/demo has no audio tower")
    page.goto("/search?vector=nonsense")
    expect(page.get_by_role("alert")).to_contain_text("/v1/queries")
    page.goto(f"/search?like={'0' * 64}")
    expect(page.get_by_role("alert")).to_contain_text("No image of the collection has this key")
