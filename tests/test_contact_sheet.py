import base64
import io
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_encoders import contact_sheet as sheets
from image_encoders.collection import Hit as StoredHit
from image_encoders.contact_sheet import SIDE, contact_sheet, duplicates_sheet, thumbnail, write
from image_encoders.duplicates import Duplicate, Group
from image_encoders.records import Locator


@dataclass
class Hit:
    path: str
    score: float = 0.5
    width: int = 40
    height: int = 30
    copies: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return self.path

    @property
    def locator(self) -> Locator:
        return Locator(self.path)


class Reader(HTMLParser):
    """Every tag with its attributes, and all text; complains about tags that do not match."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words = ""
        self.open: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def draw_image(path: Path, size=(400, 200), mode="RGB", **save) -> Path:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (size[1], size[0], len(mode)), np.uint8)
    Image.fromarray(pixels).save(path, **save)
    return path


def sheet(hits, **changes) -> str:
    return contact_sheet(hits, **{"query": "a cat", "model": "clip/demo", "collection": "pets", **changes})


def test_a_thumbnail_is_small_and_keeps_the_images_shape(tmp_path):
    small = Image.open(io.BytesIO(thumbnail(draw_image(tmp_path / "wide.png", (1000, 400)))))
    assert small.size == (SIDE, round(SIDE * 0.4))
    assert small.format == "JPEG"


def test_a_small_image_is_not_enlarged(tmp_path):
    assert Image.open(io.BytesIO(thumbnail(draw_image(tmp_path / "tiny.png", (9, 5))))).size == (9, 5)


def test_a_thumbnail_is_upright(tmp_path):
    image = Image.new("RGB", (60, 40), "white")
    exif = image.getexif()
    exif[274] = 6  # turn by 90 degrees to see it upright
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert Image.open(io.BytesIO(thumbnail(tmp_path / "turned.jpg"))).size == (40, 60)


def test_what_is_transparent_shows_white(tmp_path):
    Image.new("RGBA", (20, 20), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    assert min(Image.open(io.BytesIO(thumbnail(tmp_path / "clear.png"))).getpixel((10, 10))) > 250


def test_an_image_in_an_archive_is_shown_under_its_own_name(tmp_path):
    archive = tmp_path / "shard.tar"
    with tarfile.open(archive, "w") as file:
        file.add(draw_image(tmp_path / "a.png"), "deep/a.png")
    member = "deep/a.png"
    found = StoredHit(f"{archive}#{member}", str(archive), 0.5, 400, 200, "", member=member)
    page = Reader(sheet([found]))
    assert len(page.all("img")) == 1
    assert "shard.tar#deep/a.png" in page.words


def test_the_page_needs_nothing_but_itself(tmp_path):
    page = Reader(sheet([Hit(str(draw_image(tmp_path / "a.png")))]))
    (image,) = page.all("img")
    kind, data = image["src"].split(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (256, 128)
    assert not page.all("link")
    assert not page.all("script")
    assert "@import" not in page.words
    assert "url(" not in page.words


def test_every_image_has_a_text_for_those_who_do_not_see_it(tmp_path):
    page = Reader(
        sheet([Hit(str(draw_image(tmp_path / f"{n}.png"))) for n in "abc"], image=Locator(str(tmp_path / "a.png")))
    )
    assert [image["alt"] for image in page.all("img")] == ["The query: a cat", "a.png", "b.png", "c.png"]
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("title")) == 1


def test_copies_are_counted_below_their_image_and_the_first_are_named(tmp_path):
    path = str(draw_image(tmp_path / "a.png"))
    page = Reader(
        sheet([Hit(path, copies=tuple(f"/copy {n}.png" for n in range(1200))), Hit(path, copies=("/b<.png",))])
    )
    assert "and 1,200 copies" in page.words
    assert "and 1 copy" in page.words
    titles = [span["title"] for span in page.all("span") if "title" in span]
    assert sum("/copy 9.png" in title and "/copy 11.png" not in title for title in titles) == 1
    assert "/b<.png" in titles


def test_names_and_queries_cannot_become_markup(tmp_path):
    name = '"><script>alert(1)</script>&<b>.png'
    path = tmp_path / name.replace("/", "_")
    page = Reader(sheet([Hit(str(draw_image(path)))], query="<img src=x onerror=alert(1)>", collection="</p><script>"))
    assert not page.all("script")
    assert len(page.all("img")) == 1
    assert "<img src=x onerror=alert(1)>" in page.words


def test_links_lead_to_the_files_themselves(tmp_path):
    path = draw_image(tmp_path / "50% of #1?.png")
    (link,) = Reader(sheet([Hit(str(path))])).all("a")
    assert link["href"] == path.as_uri()
    assert "%23" in link["href"]


def duplicate(path: Path | str, score: float = 1.0) -> Duplicate:
    return Duplicate(str(path), str(path), score, 40, 30, "", size=1000)


def test_groups_of_duplicates_show_their_best_image_first_and_name_it(tmp_path):
    whole, small = (draw_image(tmp_path / f"{name}.png") for name in ("<b>whole", "small"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    group = Group((duplicate(whole), duplicate(small, 0.99), duplicate(broken, 0.97)), 0.961, "the most pixels")
    page = Reader(duplicates_sheet([group, group], threshold=0.95, model="m", collection="</p><b>"))
    assert "2 groups of duplicates" in page.words
    assert "</p><b>" in page.words
    assert "3 images, similarity 0.961 or more" in page.words
    assert len(page.all("section")) == 2
    assert [image["alt"] for image in page.all("img")] == ["<b>whole.png", "small.png"] * 2
    assert re.findall(r"(best)? (\d\.\d{3})\n", page.words) == [("best", "1.000"), ("", "0.990"), ("", "0.970")] * 2
    assert "can no longer be read" in page.words


def test_a_page_of_very_many_duplicates_says_what_it_leaves_out(monkeypatch):
    monkeypatch.setattr(sheets, "GROUPS", 2)
    monkeypatch.setattr(sheets, "GROUPED", 3)
    group = Group(tuple(duplicate(f"/gone/{number}.jpg") for number in range(5)), 1.0, "the most pixels")
    page = Reader(duplicates_sheet([group] * 4, threshold=0.9, model="m", collection="c"))
    assert "of which the first 2 are shown" in page.words
    assert page.words.count("2 more are not shown") == len(page.all("section")) == 2
    assert len(page.all("figure")) == 6


@pytest.mark.parametrize("broken", ["missing", "empty", "text"])
def test_an_image_that_is_gone_or_broken_says_so_and_the_others_stay(tmp_path, broken):
    path = tmp_path / "broken.jpg"
    if broken != "missing":
        path.write_bytes(b"" if broken == "empty" else b"not an image")
    page = Reader(sheet([Hit(str(path)), Hit(str(draw_image(tmp_path / "good.png")))]))
    assert len(page.all("img")) == 1
    note = "no longer there" if broken == "missing" else "can no longer be read"
    assert note in page.words


def test_a_name_that_is_not_utf8_can_be_written(tmp_path):
    path = Path(str(tmp_path) + "/caf\udce9.png")
    draw_image(path)
    write(tmp_path / "page.html", sheet([Hit(str(path))]))
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "%E9.png" in text
    assert "data:image/jpeg" in text


def test_a_page_without_hits_is_a_page(tmp_path):
    assert "0 images from pets" in Reader(sheet([])).words


def test_hits_are_numbered_in_their_order(tmp_path):
    hits = [Hit(str(draw_image(tmp_path / f"{n}.png")), score) for n, score in zip("xyz", (0.9, 0.5, -0.125))]
    words = Reader(sheet(hits)).words
    assert re.findall(r"(\d) (-?\d\.\d{3})", words) == [("1", "0.900"), ("2", "0.500"), ("3", "-0.125")]


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "page.html").mkdir()
    with pytest.raises(OSError):
        write(tmp_path / "page.html", "<p>")
    assert [one.name for one in tmp_path.iterdir()] == ["page.html"]


def test_writing_replaces_an_older_page(tmp_path):
    write(tmp_path / "page.html", "old")
    write(tmp_path / "page.html", "new")
    assert (tmp_path / "page.html").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_a_browser_draws_the_page(tmp_path):
    hits = [Hit(str(draw_image(tmp_path / f"{n}.png", (300 + n, 200)))) for n in range(7)]
    write(tmp_path / "page.html", sheet([*hits, Hit("/nowhere/gone.jpg")]))
    subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--screenshot={tmp_path}/page.png"]
        + ["--window-size=1000,800", (tmp_path / "page.html").as_uri()],
        check=True,
        capture_output=True,
        timeout=300,
    )
    with Image.open(tmp_path / "page.png") as seen:
        assert len(set(seen.convert("RGB").resize((100, 80)).get_flattened_data())) > 100
