import json
import os
import subprocess
import sys
import tarfile

import pytest
from PIL import Image

from image_encoders import models
from image_encoders.cli.search import show
from image_encoders.collection import Collection, Hit, id_of


@pytest.fixture
def collection(command, photos, tmp_path, monkeypatch):
    """The six photos encoded, the current folder above them."""
    monkeypatch.chdir(tmp_path)
    assert command("encode", "photos", "-o", "c", "-m", "colours/plain").status == 0
    return tmp_path / "c"


def test_words_find_their_images(command, collection):
    ran = command("search", "c", "something red", "-k", 2)
    assert ran.status == 0
    lines = ran.out.splitlines()
    assert lines[0].split() == ["rank", "score", "size", "image"]
    assert lines[1].split() == ["1", "1.000", "40", "x", "30", "photos/red.png"]
    assert lines[2].split()[-1] == "photos/more/dark-red.jpg"
    assert len(lines) == 3


def test_images_are_filtered_by_the_metadata_of_their_table(command, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = ("path,year,note", "photos/red.png,2019,it's", "photos/green.png,2020,a = b", "photos/blue.png,late,")
    (tmp_path / "photos.csv").write_text("\n".join(lines))
    assert command("encode", "photos.csv", "-o", "c", "-m", "colours/plain").status == 0

    def found(*where: str) -> list[str]:
        ran = command("search", "c", "red", "--json", *(word for one in where for word in ("--where", one)))
        assert ran.status == 0
        return sorted(os.path.basename(hit["path"]) for hit in ran.json)

    assert found("year >= 2020") == found("year=2020") == found("note = a = b") == ["green.png"]
    assert found("note = it's", "year < 2020") == found('year = "2019"') == ["red.png"]
    assert found("note = null") == ["blue.png"]
    assert found("year != 2019", "note != null") == ["green.png"]
    ran = command("search", "c", "red", "--where", "price > 3")
    assert (ran.status, ran.err) == (0, "no image matches --where\n")
    for where, said in (
        ("year", "write NAME, one of"),
        ("year > true", "only = and != are accepted"),
        (" = 3", "write NAME"),
    ):
        ran = command("search", "c", "red", "--where", where)
        assert (ran.status, said in ran.err) == (2, True), ran.err


def test_images_are_filtered_by_the_folders_that_partition_them(command, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for year, name in ((2020, "green.png"), (2021, "red.png")):
        (tmp_path / "photos" / f"year={year}").mkdir()
        (tmp_path / "photos" / name).rename(tmp_path / "photos" / f"year={year}" / name)
    (tmp_path / "list.txt").write_text("photos/year=2020/green.png\nphotos/year=2021/red.png\n")
    listed = command("encode", "list.txt", "-o", "c", "-m", "colours/plain", "--json").json
    assert (listed["encoded"], command("search", "c", "red", "--where", "year = 2020", "--json").json) == (2, [])
    searched = command("encode", "photos", "-o", "c", "--json").json
    assert (searched["encoded"], searched["unchanged"]) == (4, 2)  # the same ids: their rows get the metadata
    found = command("search", "c", "red", "--where", "year = 2020", "--json").json
    assert [(os.path.basename(hit["path"]), hit["metadata"]) for hit in found] == [("green.png", {"year": "2020"})]


def test_an_item_of_a_programs_own_source_is_shown_by_its_id(capsys):
    places = [("shard-1/7.png", "https://example.org/shard-1.tar"), ("/a.png", "/a.png"), (id_of("/\udcff"), "/\udcff")]
    show([Hit(one, path, 1.0, 40, 30, "00") for one, path in places], "nothing")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["shard-1/7.png", "/a.png", "/\\udcff"]


def test_a_file_that_is_not_there_is_said_as_every_error_is(command, collection):
    assert command("search", "c", "--image", "nope.jpg").err == "error: nope.jpg: no such file\n"


def test_an_export_into_a_folder_that_is_missing_names_the_folder(command, collection):
    assert "there is no folder nowhere; " in command("export", "c", "nowhere/rows.npy").err


def test_an_image_finds_those_like_it(command, collection, tmp_path):
    Image.new("RGB", (7, 7), (10, 10, 250)).save(tmp_path / "sky.png")
    found = command("search", "c", "--image", "sky.png", "-k", 1, "--json").json
    assert [hit["path"] for hit in found] == [str(tmp_path / "photos" / "blue.png")]


def test_several_queries_are_added_up_and_some_kept_away_from(command, collection, tmp_path):
    Image.new("RGB", (7, 7), (10, 250, 10)).save(tmp_path / "grass.png")
    mixed = command("search", "c", "red", "--image", "grass.png", "--minus", "blue", "--json", "--html", "p.html").json
    opened = Collection.open("c")
    red, blue = opened.encoder.encode_text(["red", "blue"])
    green = opened.encoder.encode_image([tmp_path / "grass.png"])[0]
    expected = opened.search(opened.mix([red, green, blue], [1, 1, -1]))
    assert [(hit["path"], hit["score"]) for hit in mixed] == [(hit.path, hit.score) for hit in expected]
    assert mixed[-1]["path"] == str(tmp_path / "photos" / "blue.png")
    assert "red + grass.png − blue" in (tmp_path / "p.html").read_text()
    assert "cancel each other out" in command("search", "c", "red", "--minus", "red").err


def test_json_is_a_list_of_hits(command, collection, tmp_path):
    found = command("search", "c", "green", "--json").json
    assert [hit["rank"] for hit in found] == [1, 2, 3, 4, 5, 6]
    first = found[0]
    assert first["path"] == str(tmp_path / "photos" / "green.png")
    assert first["score"] == pytest.approx(1)
    assert (first["width"], first["height"]) == (40, 30)
    assert len(first["sha256"]) == 64
    assert sorted((hit["score"] for hit in found), reverse=True) == [hit["score"] for hit in found]


def test_paths_outside_the_current_folder_are_whole(command, collection, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert str(tmp_path / "photos" / "red.png") in command("search", collection, "red").out


def test_a_long_path_is_never_cut_where_there_is_no_terminal(command, collection, photos):
    long = photos / ("x" * 120 + "-" + "y" * 100 + ".png")
    Image.new("RGB", (4, 4), "white").save(long)
    command("encode", "photos", "-o", "c")
    assert f"photos/{long.name}\n" in command("search", "c", "white", "-k", 1).out


def test_an_image_inside_an_archive_is_a_query_by_its_id(command, collection, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tarfile.open("more.tar", "w") as tar:
        tar.add(photos / "red.png", "inside/red.png")
    found = command("search", "c", "--image", "more.tar#inside/red.png", "-k", 1, "--json", "--html", "p.html")
    assert [os.path.basename(hit["path"]) for hit in found.json] == ["red.png"]
    page = (tmp_path / "p.html").read_text()
    assert "<title>red.png: 1 image</title>" in page
    assert page.count("data:image/jpeg;base64,") == 2  # the query's too
    missing = command("search", "c", "--image", "more.tar#none.png")
    assert missing.err == "error: more.tar#none.png: no none.png in the archive\n"


def test_the_page_of_thumbnails_is_written_and_said_where(command, collection, tmp_path):
    ran = command("search", "c", "red", "--html", "red.html", "--json")
    assert "red.html" in ran.err
    assert len(ran.json) == 6
    page = (tmp_path / "red.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 6
    assert "<title>red: 6 images</title>" in page


def test_colour_is_for_terminals_only(command, collection, monkeypatch):
    assert "\x1b" not in command("search", "c", "red").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in command("search", "c", "red").out


def test_a_name_with_control_characters_or_brackets_is_shown_as_it_is(command, photos, collection):
    name = "white [bold]\x1b[31m\n.png"
    Image.new("RGB", (4, 4), "white").save(photos / name)
    command("encode", "photos", "-o", "c")
    ran = command("search", "c", "white", "-k", 1)
    assert r"white [bold]\x1b[31m" in ran.out
    assert "\x1b" not in ran.out
    assert command("search", "c", "white", "-k", 1, "--json").json[0]["path"].endswith(name)


@pytest.mark.parametrize("query", [(), ("--minus", "red"), ("red", "--minus", " "), ("red", "-k", "0")])
def test_without_a_query_nothing_is_searched(command, collection, query):
    ran = command("search", "c", *query)
    assert ran.status == 2
    assert ran.out == ""


@pytest.mark.parametrize("words", ["", "  ", "\n"])
def test_no_words_are_no_query(command, collection, words):
    ran = command("search", "c", words)
    assert (ran.status, ran.out) == (2, "")
    assert "WORDS are empty" in ran.err


def test_the_help_shows_that_words_are_one_query_of_three(command):
    usage, _, rest = command("search", "--help").out.partition("\n\n")
    assert usage.endswith('["WORDS"]')
    described = rest.partition('"WORDS"')[2].partition("Options:")[0]
    assert "--image or --audio" in described
    assert "[required]" not in described


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere", "red"), "nowhere"),
        (("photos", "red"), "photos"),
        (("c", "--image", "gone.jpg"), "gone.jpg"),
        (("c", "--image", "http://127.0.0.1/a.jpg"), "http://127.0.0.1/a.jpg"),
        (("c", "--image", "photos/red.png#1"), "photos/red.png#1"),
        (("http://example.org/c", "red"), "http://example.org/c"),
        (("c", "--audio", "photos/red.png"), "no audio tower"),
        (("c", "red", "--html", "nowhere/page.html"), "nowhere"),
        (("c", "red", "--html", "photos"), "must end with .html"),
        (("c", "red", "--html", "photos/a.jpg"), "must end with .html"),
        (("c", "red", "--weights", "gone.pt"), "gone.pt"),
    ],
)
def test_what_cannot_be_searched_is_one_sentence_before_a_model_is_loaded(
    command, collection, monkeypatch, arguments, words
):
    monkeypatch.setattr(models, "load", lambda *names, **options: pytest.fail("a model was loaded"))
    ran = command("search", *arguments)
    assert ran.status == 2
    assert words in ran.err
    assert len([line for line in ran.err.splitlines() if not line.startswith(("Usage:", "Try ", " ")) and line]) == 1


def test_a_device_that_is_not_here_cannot_be_searched_with(command, collection):
    ran = command("search", "c", "red", "--device", "cuda:99")
    assert ran.status == 2
    assert "cuda:99" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_words_for_a_model_that_knows_none_are_refused(command, photos, tmp_path):
    command("encode", photos, "-o", tmp_path / "c", "-m", "colours/mute")
    ran = command("search", tmp_path / "c", "red")
    assert (ran.status, ran.out) == (2, "")
    assert "no text tower" in ran.err


def test_a_collection_of_other_weights_is_not_searched(command, photos, tmp_path):
    weights = tmp_path / "weights"
    weights.write_text("one")
    command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain", "--weights", weights)
    weights.write_text("another")
    ran = command("search", tmp_path / "c", "red")
    assert (ran.status, ran.out) == (2, "")
    assert "cannot be compared" in ran.err


def test_the_recipes_weights_may_have_moved(command, photos, tmp_path):
    weights = tmp_path / "weights"
    weights.write_text("one")
    command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain", "--weights", weights)
    weights.rename(tmp_path / "moved")
    assert command("search", tmp_path / "c", "red").status == 2
    assert command("search", tmp_path / "c", "red", "--weights", tmp_path / "moved").status == 0


def test_a_reader_that_stops_early_is_no_error(collection, tmp_path):
    words = [sys.executable, "-m", "image_encoders", "failures", str(collection), "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait(120) == 141


# ---- export ----


@pytest.mark.parametrize("name", ["rows.parquet", "rows.npy"])
def test_export_says_what_it_wrote(command, collection, tmp_path, name):
    ran = command("export", "c", name, "--json")
    assert ran.status == 0
    assert ran.json == {"path": str(tmp_path / name), "rows": 6, "dim": 3, "model": "colours/plain"}
    assert (tmp_path / name).stat().st_size > 0
    assert "6 embeddings of 3 numbers" in command("export", "c", name, "--overwrite").out


def test_export_replaces_a_file_only_with_overwrite(command, collection, tmp_path):
    (tmp_path / "rows.npy").write_text("mine")
    ran = command("export", "c", "rows.npy")
    assert ran.status == 2
    assert "rows.npy" in ran.err
    assert "--overwrite" in ran.err
    assert (tmp_path / "rows.npy").read_text() == "mine"


@pytest.mark.parametrize("out", ["rows.xlsx", "nowhere/rows.npy", "photos"])
def test_an_export_that_cannot_be_written_is_one_sentence(command, collection, tmp_path, out):
    before = sorted(tmp_path.rglob("*"))
    ran = command("export", "c", out)
    assert (ran.status, ran.out) == (2, "")
    assert len(ran.err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_failures_of_a_clean_run_are_none(command, collection):
    ran = command("failures", "c")
    assert (ran.status, ran.out) == (0, "")
    assert "no failures" in ran.err
    assert json.loads(command("failures", "c", "--json").out) == Collection.open(collection).failures() == []


# ---- copies ----


@pytest.fixture
def copies(photos, collection, command):
    """Three more files with the bytes of red.png."""
    for name in ("copy-1.png", "copy-2.png", "more/copy-3.png"):
        (photos / name).write_bytes((photos / "red.png").read_bytes())
    assert command("encode", "photos", "-o", "c").status == 0


def test_identical_files_share_a_line_that_counts_them(command, copies):
    lines = command("search", "c", "red", "-k", 2).out.splitlines()
    assert lines[1].endswith("photos/copy-1.png and 3 copies")
    assert lines[2].endswith("photos/more/dark-red.jpg")
    (first, _) = command("search", "c", "red", "-k", 2, "--json").json
    assert [path.rpartition("/")[2] for path in first["copies"]] == ["copy-2.png", "copy-3.png", "red.png"]


def test_every_copy_has_a_line_of_its_own_if_all_are_wanted(command, copies):
    lines = command("search", "c", "red", "-k", 5, "--all").out.splitlines()
    assert [line.rpartition("/")[2] for line in lines[1:]] == [
        "copy-1.png",
        "copy-2.png",
        "copy-3.png",
        "red.png",
        "dark-red.jpg",
    ]


# ---- info ----


def test_info_says_whose_images_a_collection_holds(command, collection):
    ran = command("info", "c", "--json")
    assert ran.status == 0
    assert (ran.json["model"], ran.json["images"], ran.json["failures"]) == ("colours/plain", 6, 0)
    shown = command("info", "c").out
    for words in ("colours/plain", "6 images", "no index", "float32", ran.json["fingerprint"], ran.json["created"]):
        assert words in shown


def test_info_of_what_is_no_collection_is_one_sentence(command, tmp_path):
    ran = command("info", tmp_path / "missing")
    assert ran.status == 2
    assert "no such folder" in ran.err


def test_a_name_with_a_line_end_stays_on_one_line(command, photos, collection):
    (photos / "red.png").rename(photos / "red\nor so.png")
    (photos / "no\nimage.png").write_bytes(b"")
    assert command("encode", "photos", "-o", "c").status == 3
    lines = command("search", "c", "something red", "-k", 1).out.splitlines()
    assert (len(lines), lines[1].endswith("red\\nor so.png and 1 copy")) == (2, True)
    assert "no\\nimage.png" in command("failures", "c").out
