import errno
import json
import os
import queue
import re
import signal
import tarfile
import threading
import time

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from image_encoders import models
from image_encoders.bulk import run as bulk_run
from image_encoders.cli import meter, printing
from image_encoders.cli.failures import with_advice
from image_encoders.collection import Collection, Failure
from image_encoders.errors import WeightsError


def test_a_folder_becomes_a_collection(command, photos, tmp_path):
    ran = command("encode", photos, "-o", tmp_path / "c", "--model", "colours/plain")
    assert ran.status == 0
    assert "6 images" in ran.out
    assert "6 encoded" in ran.out
    assert Collection.open(tmp_path / "c").count() == 6


def test_again_encodes_nothing_and_needs_no_model_named(command, photos, tmp_path):
    command("encode", photos, "-o", tmp_path / "c", "--model", "colours/plain", "-O", "scale=0.5")
    again = command("encode", photos, "-o", tmp_path / "c", "--json")
    assert again.status == 0
    assert (again.json["encoded"], again.json["unchanged"], again.json["total"]) == (0, 6, 6)
    assert again.json["model"] == "colours/plain"


def test_again_with_the_model_named_goes_on_with_the_collections_options(command, photos, tmp_path):
    command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain", "-O", "scale=0.5", "--precision", "bfloat16")
    again = command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain", "--json")
    assert again.status == 0
    assert (again.json["unchanged"], again.json["precision"]) == (6, "bfloat16")


def test_what_is_new_is_added_and_the_same_bytes_are_not_embedded_twice(command, photos, tmp_path):
    command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain")
    Image.new("RGB", (5, 5), "white").save(photos / "new.png")
    (photos / "copy.png").write_bytes((photos / "red.png").read_bytes())
    again = command("encode", photos, "-o", tmp_path / "c", "--json")
    assert (again.json["encoded"], again.json["reused"], again.json["unchanged"]) == (1, 1, 6)


def test_json_holds_what_a_script_wants_and_nothing_else_is_on_standard_output(command, photos, broken, tmp_path):
    ran = command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain", "--json")
    assert ran.status == 3
    printed = ran.json
    assert (printed["total"], printed["encoded"], printed["failed"], printed["rows"]) == (8, 6, 2, 6)
    assert printed["collection"] == str(tmp_path / "c")
    assert printed["fingerprint"] == Collection.open(tmp_path / "c").fingerprint
    assert printed["seconds"] >= 0
    assert {failure["id"] for failure in printed["failures"]} == {str(one) for one in broken}


def test_a_log_for_machines_is_lines_of_json_whose_last_one_says_what_became_of_all(command, photos, broken, tmp_path):
    ran = command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain", "--log-json")
    last = [json.loads(line) for line in ran.err.splitlines() if line.startswith("{")][-1]
    assert (last["event"], last["done"], last["read"]) == ("end", 8, 8)
    assert last["failures"] == {"not-an-image": 1, "truncated": 1}
    assert last["limit"] in last["waited_s"]
    (tmp_path / "empty").mkdir()
    ran = command("encode", tmp_path / "empty", "-o", tmp_path / "c", "-m", "colours/plain", "--log-json")
    assert [json.loads(line)["event"] for line in ran.err.splitlines() if line.startswith("{")][-1] == "end"


def test_a_log_for_machines_goes_on_while_nothing_finishes(command, photos, tmp_path, monkeypatch):
    run, say, lines = bulk_run.run, meter.say, queue.Queue()

    def said(line: str) -> None:
        say(line)
        lines.put(json.loads(line))

    def hangs_before_and_after(*given, **how):
        before.extend(lines.get(timeout=60) for _ in range(3))
        report = run(*given, **how)
        while not lines.empty():
            lines.get()
        after.extend(lines.get(timeout=60) for _ in range(3))  # the first may have been written meanwhile
        return report

    before, after = [], []
    monkeypatch.setattr(meter, "LOG_S", 0.01)
    monkeypatch.setattr(meter, "say", said)
    monkeypatch.setattr(bulk_run, "run", hangs_before_and_after)
    ran = command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain", "--log-json")
    assert ran.status == 0
    assert {(line["event"], line["done"], line["limit"]) for line in before} == {("progress", 0, None)}
    assert {(line["event"], line["done"], line["read"]) for line in after} == {("progress", 6, 6)}
    last = [json.loads(line) for line in ran.err.splitlines() if line.startswith("{")][-1]
    assert (last["event"], last["done"]) == ("end", 6)


def test_broken_files_fail_alone_are_listed_and_give_status_3(command, photos, broken, tmp_path):
    ran = command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain")
    assert ran.status == 3
    assert "6 encoded, 2 failed" in ran.out
    assert "a-text.jpg" in ran.out
    assert "image-encoders failures" in ran.out
    listed = command("failures", tmp_path / "c")
    assert listed.status == 0
    assert all(one.name in listed.out for one in broken)
    assert {one["code"] for one in command("failures", tmp_path / "c", "--json").json} == {"not-an-image", "truncated"}


def test_a_mended_file_is_encoded_and_leaves_the_list(command, photos, broken, tmp_path):
    command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain")
    for one in broken:
        Image.new("RGB", (9, 9), "blue").save(one)
    assert command("encode", photos, "-o", tmp_path / "c", "--retry-failed").status == 0
    assert command("failures", tmp_path / "c", "--json").json == []


def test_a_failure_is_not_tried_again_unless_asked(command, photos, tmp_path):
    arguments = ("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain", "--json")
    assert command(*arguments, "--max-pixels", 1000).json["failed"] == 6
    assert command(*arguments, "--max-pixels", 2000).json["failed"] == 6
    assert command(*arguments, "--max-pixels", 2000, "--retry-failed").json["encoded"] == 6


def test_a_file_larger_than_allowed_fails(command, photos, tmp_path):
    ran = command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain", "--json", "--max-bytes", 10)
    assert {failure["code"] for failure in ran.json["failures"]} == {"too-many-bytes"}


@pytest.fixture(autouse=True)
def limits(monkeypatch):
    """The command sets these for its process, which here is the tests'."""
    for name in ("IMAGE_ENCODERS_MAX_PIXELS", "IMAGE_ENCODERS_MAX_BYTES", "IMAGE_ENCODERS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_quiet_says_nothing(command, photos, tmp_path):
    ran = command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain", "--quiet")
    assert (ran.status, ran.out, ran.err) == (0, "", "")


def test_quiet_says_in_one_line_how_many_failed_and_where_they_are_listed(command, photos, broken, tmp_path):
    ran = command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain", "--quiet")
    assert (ran.status, ran.out) == (3, "")
    assert ran.err == f"2 failed; image-encoders failures {tmp_path / 'c'} lists them\n"


@pytest.mark.parametrize("limit", ["--max-pixels", "--max-bytes"])
def test_a_failure_by_a_limit_says_how_to_raise_it(command, photos, tmp_path, limit):
    ran = command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain", limit, 10)
    assert f"raise it with {limit} N and --retry-failed" in ran.out
    assert command("failures", tmp_path / "c").out.count(f"raise it with {limit} N and --retry-failed") == 6


def test_a_failure_for_want_of_a_package_says_how_to_go_on_once_it_is_installed():
    message = "a HEIC file, which needs pillow-heif: pip install 'image-encoders[heif]'"
    failure = Failure("/a.heic", "/a.heic", "read", "unsupported", message, state="1", when="2026-01-01T00:00:00Z")
    assert with_advice(failure) == f"{message}; then encode it with --retry-failed"


def test_what_a_custom_model_needs_is_said_in_flags(command, photos, tmp_path):
    ran = command("encode", photos, "-o", tmp_path / "c", "-m", "custom")
    assert ran.status == 2
    assert "custom needs --weights, -O definition=..., -O class_name=...:" in ran.err


def test_no_images_is_said_with_what_was_passed_over_and_the_way_to_take_it(command, tmp_path):
    folder = tmp_path / "drawings"
    folder.mkdir()
    arguments = ("encode", folder, "-o", tmp_path / "c", "-m", "colours/plain")
    ran = command(*arguments, "--json")
    assert (ran.status, ran.json["total"]) == (0, 0)
    assert ran.err == f"warning: no images in {folder}\n"
    for number in range(5):
        (folder / f"{number}.psd").write_text("x")
    ran = command(*arguments, "--quiet")
    assert (ran.status, ran.out) == (0, "")
    others = "5 other files: 0.psd, 1.psd, 2.psd and 2 more"
    assert ran.err == f"warning: no images in {folder}, but {others}; --all-files includes them\n"


def test_embeddings_of_files_that_are_gone_can_be_removed(command, photos, tmp_path):
    command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain")
    (photos / "red.png").unlink()
    assert command("encode", photos, "-o", tmp_path / "c", "--json").json["rows"] == 6
    ran = command("encode", photos, "-o", tmp_path / "c", "--json", "--prune")
    assert (ran.json["pruned"], ran.json["rows"]) == (1, 5)


def test_options_reach_the_model_as_numbers(command, photos, tmp_path):
    command("encode", photos / "red.png", "-o", tmp_path / "c", "-m", "colours/plain", "-O", "scale=0.5")
    command("export", tmp_path / "c", tmp_path / "rows.npy")
    assert np.load(tmp_path / "rows.npy").tolist() == [[127.5, 0, 0]]


# ---- what cannot be done: one sentence, status 2 ----


def refused(ran, *words: str) -> None:
    assert ran.status == 2
    assert ran.out == ""
    assert "Traceback" not in ran.err
    sentences = [line for line in ran.err.splitlines() if line and not line.startswith(("Usage:", "Try ", " "))]
    assert len(sentences) == 1, ran.err
    for word in words:
        assert word in ran.err


def test_a_missing_folder_is_refused(command, tmp_path):
    refused(command("encode", tmp_path / "nowhere", "-o", tmp_path / "c", "-m", "colours/plain"), "nowhere")
    assert not (tmp_path / "c").exists()


def test_an_unknown_model_is_refused_with_the_closest_names(command, photos, tmp_path):
    refused(command("encode", photos, "-o", tmp_path / "c", "-m", "clip/demoo"), "did you mean clip/demo?")
    refused(command("encode", photos, "-o", tmp_path / "c", "-m", "colour/plain"), "did you mean colours/plain?")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "/GPU:7"])
def test_a_device_that_is_not_here_is_refused(command, photos, tmp_path, device):
    refused(command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain", "--device", device), device)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("wrong", [("--precision", "int3"), ("--engine", "steam"), ("--weights", "/nowhere/w.pt")])
def test_wrong_words_for_the_model_are_refused(command, photos, tmp_path, wrong):
    refused(command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain", *wrong), wrong[1])


@pytest.mark.parametrize("option", ["size=3", "nonsense", "=3", "a b=3"])
def test_an_option_that_the_model_does_not_have_is_refused(command, photos, tmp_path, option):
    refused(command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain", "-O", option))


@pytest.mark.parametrize("wrong", [("--batch-size", "0"), ("--workers", "-1"), ("--max-pixels", "many"), ("--bogus",)])
def test_wrong_usage_is_refused(command, photos, tmp_path, wrong):
    refused(command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain", *wrong), wrong[0])


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/c", "photos"])
def test_an_output_that_cannot_be_a_collection_is_refused_and_untouched(command, photos, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    refused(command("encode", photos, "-o", tmp_path / place, "-m", "colours/plain"))
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_embeddings_of_another_model_are_refused_and_the_collection_stays(command, photos, tmp_path):
    command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain")
    refused(command("encode", photos, "-o", tmp_path / "c", "-m", "colours/mute"), "colours/plain", "colours/mute")
    refused(command("encode", photos, "-o", tmp_path / "c", "-O", "scale=2.0"))
    assert Collection.open(tmp_path / "c").count() == 6


def test_a_full_disk_is_one_sentence(command, photos, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "c"))

    monkeypatch.setattr(bulk_run, "run", full)
    refused(
        command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain"), "no space left", "run the same command"
    )


def test_with_debug_an_error_shows_where_it_comes_from(photos, tmp_path, monkeypatch):
    from image_encoders.cli import app
    from image_encoders.errors import UnknownModel

    with pytest.raises(UnknownModel):
        app(["--debug", "encode", str(photos), "-o", str(tmp_path / "c"), "-m", "no/such"], prog_name="image-encoders")
    monkeypatch.setenv("IMAGE_ENCODERS_DEBUG", "1")
    with pytest.raises(UnknownModel):
        app(["encode", str(photos), "-o", str(tmp_path / "c"), "-m", "no/such"], prog_name="image-encoders")


# ---- before anything slow ----


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    """Fails the test that loads or downloads a model."""
    monkeypatch.setattr(models, "load", lambda *names, **options: pytest.fail("a model was loaded"))
    monkeypatch.setattr("image_encoders.weights.hub.hub_folder", from_the_cache)


def from_the_cache(repo_id, *, offline=None, **options):
    if not offline:
        pytest.fail("the network was used")
    raise WeightsError(f"{repo_id} is not downloaded")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (("-m", "bit/R50x1", "--weights", "photos/red.png"), "bit/R50x1"),  # of another family
        (("-m", "clip/demo"), "clip/demo"),
        (("-m", "clip/nobody/has-this"), "clip/nobody/has-this"),  # which would have to be downloaded
        (("--precision", "bfloat16"), "float32"),
    ],
)
def test_another_model_than_the_collections_is_refused_before_it_is_loaded(
    request, command, photos, tmp_path, monkeypatch, other, said
):
    monkeypatch.chdir(tmp_path)
    command("encode", photos, "-o", "c", "-m", "colours/plain")
    request.getfixturevalue("nothing_is_loaded")
    refused(command("encode", photos, "-o", "c", *other), "colours/plain", said, "--output")


def test_a_model_that_would_have_to_be_downloaded_does_not_go_on_with_another_ones_collection(
    request, command, photos, tmp_path
):
    command("encode", photos, "-o", tmp_path / "c", "-m", "clip/demo")
    request.getfixturevalue("nothing_is_loaded")
    refused(command("encode", photos, "-o", tmp_path / "c", "-m", "clip/nobody/has-this"), "clip/demo", "has-this")


def test_what_is_wrong_with_the_paths_is_said_before_a_model_is_loaded(command, photos, tmp_path, nothing_is_loaded):
    new = ("-o", tmp_path / "c", "-m", "clip/demo")
    refused(command("encode", photos, "-o", photos, "-m", "clip/demo"), "photos holds blue.png")
    refused(command("encode", photos, "-o", photos / "red.png", "-m", "clip/demo"), "is a file")
    refused(command("encode", photos, "-o", photos / "red.png" / "c", "-m", "clip/demo"), "red.png")
    refused(command("encode", photos, "-o", "s3://bucket/photos", "-m", "clip/demo"), "s3://bucket/photos")
    refused(command("encode", photos, *new, "--weights", tmp_path / "nowhere.pt"), "nowhere.pt")
    refused(command("encode", photos, *new, "--calibration", tmp_path / "typical"), "typical")
    refused(command("encode", tmp_path / "nowhere", *new), "nowhere")
    assert not (tmp_path / "c").exists()


def test_a_collection_that_is_being_written_is_refused_before_a_model_is_loaded(request, command, photos, tmp_path):
    command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain")
    request.getfixturevalue("nothing_is_loaded")
    with Collection.open(tmp_path / "c").writing():
        refused(command("encode", photos, "-o", tmp_path / "c"), "being written by another process")


# ---- what a slow load says ----


@pytest.fixture
def slow_model(monkeypatch):
    """Loads only once something was said."""
    said = threading.Event()
    say, load = printing.say, models.load

    def saying(*words, **options):
        say(*words, **options)
        said.set()

    def loading(*names, **options):
        assert said.wait(120)
        said.clear()
        return load(*names, **options)

    monkeypatch.setattr(printing, "NOTICE_S", 0.01)
    monkeypatch.setattr(printing, "say", saying)
    monkeypatch.setattr(models, "load", loading)


def test_a_model_that_takes_its_time_is_said_to_be_loading_in_one_line(command, photos, tmp_path, slow_model):
    ran = command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain")
    assert ran.status == 0
    assert len(ran.err.splitlines()) == 1
    assert ran.err == "loading colours/plain\n"
    ran = command("search", tmp_path / "c", "red")
    assert ran.status == 0
    assert ran.err.startswith("loading colours/plain")


def test_the_summary_counts_the_models_time(command, photos, tmp_path, monkeypatch):
    load = models.load

    def slowly(*names, **options):
        time.sleep(0.3)
        return load(*names, **options)

    monkeypatch.setattr(models, "load", slowly)
    ran = command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain")
    seconds, of_the_model = map(float, re.search(r"6 images in ([\d.]+) s \(([\d.]+) s to load", ran.out).groups())
    assert seconds >= of_the_model >= 0.3
    printed = command("encode", photos, "-o", tmp_path / "c", "--json").json
    assert printed["load_seconds"] >= 0.3


# ---- sources ----


def test_globs_lists_files_and_standard_input_are_sources(command, photos, tmp_path, monkeypatch):
    listed = tmp_path / "list.txt"
    listed.write_text(f"{photos / 'green.png'}\n")
    reading, writing = os.pipe()
    os.write(writing, f"{photos / 'blue.png'}\n".encode())
    os.close(writing)
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        ran = command(
            *("encode", photos / "more" / "*.jpg", f"@{listed}", photos / "red.png", "-", "-o", tmp_path / "c"),
            *("-m", "colours/plain", "--json"),
        )
    assert ran.status == 0
    assert ran.json["encoded"] == 6


def test_archives_and_tables_are_sources_and_their_metadata_is_exported(command, photos, tmp_path):
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for name in ("red.png", "red.txt"):
            (tmp_path / "red.txt").write_text("a red one")
            tar.add(photos / name if name.endswith("png") else tmp_path / name, name)
    (tmp_path / "table.csv").write_text(f"which,where,note\n1,{photos / 'blue.png'},a blue one\n2,,nothing\n")
    arguments = ("encode", tmp_path / "shard.tar", tmp_path / "table.csv", "-o", tmp_path / "c", "-m", "colours/plain")
    refused(command(*arguments), "table.csv", "its columns: which, where, note", "--column")
    ran = command(*arguments, "--column", "where")
    assert ran.status == 3
    assert "2 encoded, 1 failed" in ran.out
    assert "table.csv#where/1: an empty cell" in ran.out
    command("export", tmp_path / "c", tmp_path / "rows.parquet")
    rows = parquet.read_table(tmp_path / "rows.parquet", columns=["id", "member", "metadata"]).to_pylist()
    assert [(os.path.basename(row["id"]), row["member"], json.loads(row["metadata"])) for row in rows] == [
        ("blue.png", None, {"which": "1", "note": "a blue one"}),
        ("shard.tar#red.png", "red.png", {"caption": "a red one"}),
    ]


def test_a_hopeless_run_is_given_up_with_one_sentence(command, photos, tmp_path):
    (tmp_path / "list.txt").write_text(f"{photos / 'red.png'}\n" + "".join(f"/no/{n}.png\n" for n in range(30)))
    ran = command("encode", tmp_path / "list.txt", "-o", tmp_path / "c", "-m", "colours/plain", "--max-failures", 3)
    refused(ran, "more than 3 images failed", "no such file", "the same command resumes")
    assert command("encode", tmp_path / "list.txt", "-o", tmp_path / "c", "--max-failures", 30).status == 3
    refused(command("encode", photos, "-o", tmp_path / "c", "--frames", "often"), "often", "seconds")


# ---- interruption ----


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(command, tmp_path, monkeypatch):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(60):
        Image.new("RGB", (8, 8), (number, number, 100)).save(folder / f"{number}.png")
    arguments = ("encode", folder, "-o", tmp_path / "c", "-m", "colours/plain", "--batch-size", 4)
    original = np.stack
    seen = 0

    def interrupting(*stacked, **options):
        nonlocal seen
        batch = len(stacked[0]) == 4
        seen += batch
        if batch and seen == 3:
            threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)).start()
            time.sleep(60)  # until it comes
        return original(*stacked, **options)

    with monkeypatch.context() as patch:
        patch.setattr(np, "stack", interrupting)
        ran = command(*arguments)
    assert ran.status == 130
    assert "run the same command again to resume" in ran.err
    assert "Traceback" not in ran.err
    kept = Collection.open(tmp_path / "c").count()
    assert 0 < kept < 60
    again = command(*arguments, "--json")
    assert again.status == 0
    assert (again.json["encoded"], again.json["rows"]) == (60 - kept, 60)


def test_another_ctrl_c_does_not_disturb_the_answer_to_the_first(command, photos, tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    def again(collection):
        os.kill(os.getpid(), signal.SIGINT)
        return 0

    monkeypatch.setattr(bulk_run, "run", interrupted)
    monkeypatch.setattr(Collection, "count", again)
    ran = command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain")
    assert ran.status == 130
    assert "0 embeddings kept" in ran.err


def test_options_of_a_cluster_need_one(command, tmp_path):
    (tmp_path / "photos").mkdir()
    for option in ("--ray-workers=2", f"--parts={tmp_path}"):
        ran = command("encode", tmp_path / "photos", "-o", tmp_path / "c", option)
        assert ran.status == 2
        assert "--ray-workers and --parts require --ray ADDRESS" in " ".join(ran.err.replace("│", " ").split())


def test_what_is_wrong_with_the_options_is_said_before_ray_is_asked(command, photos, tmp_path):
    nobody = ("encode", photos, "-o", tmp_path / "c", "--ray", "127.0.0.1:1", "-m")
    for options, said in [
        (["colour/plain"], "there is no model"),
        (["colours/plain", "-O", "shade=1"], "has no option"),
        (["colours/plain", "--precision", "float3"], "unknown precision"),
        (["colours/plain", "--engine", "x"], "unknown engine"),
        (["colours/plain", "--device", "tpu"], "unknown device"),
        (["colours/plain", "--weights", "none.npz"], "none.npz: no such file"),
        (["bit/R50x9"], "did you mean bit/R50x"),
        (["bit/R50x1", "--weights", photos / "red.png"], "not a numpy archive"),
        (["clip/demo", "-O", "crop=middle"], "accepted: floor, round"),
        (["clip/nowhere", "--offline"], "no model 'clip/nowhere'"),
    ]:
        ran = command(*nobody, *options)
        assert (ran.status, said in ran.err) == (2, True), ran.err
    assert not (tmp_path / "c").exists()
    assert command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain").status == 0
    ran = command("encode", photos, "-o", tmp_path / "c", "--ray", "127.0.0.1:1", "-m", "clip/demo")
    assert "holds embeddings of colours/plain" in ran.err


def test_a_folder_of_tables_or_archives_alone_says_how_to_name_them(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "year=2020").mkdir(parents=True)
    (tmp_path / "data" / "year=2020" / "part-0.parquet").write_bytes(b"")
    ran = command("encode", "data", "-o", "c", "-m", "colours/plain")
    assert ran.status == 0
    assert "archives, tables and videos are named themselves, as in 'data/**/*.parquet'" in ran.err
