"""models, fetch, doctor, demo and what all commands share."""

import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import httpx
import pytest

from image_encoders import models
from image_encoders.cli.doctor import _show_stages
from image_encoders.cli.printing import error_sentence
from image_encoders.doctor import Stages
from image_encoders.errors import WeightsError

PAGE = re.compile(r"browse .* at (http://\S+)/search;")
PATIENCE_S = 300.0  # for what a command does on a busy machine


def test_models_lists_every_model_within_a_terminals_width(command):
    ran = command("models")
    assert ran.status == 0
    assert [line.split()[0] for line in ran.out.splitlines()[1:]] == models.names()
    assert models.DEFAULT in ran.err
    assert max(map(len, (ran.out + ran.err).splitlines())) < 100


def test_one_model_is_described_with_its_options(command):
    ran = command("models", "bit/R50x1")
    assert ran.status == 0
    for words in ("BiT-M-R50x1.npz", "2048", "Apache-2.0", "input_size", "source=npz"):
        assert words in ran.out
    assert command("models", "bit/R50x1", "--json").json["name"] == "bit/R50x1"
    ran = command("models", "bit/R50x7")
    assert ran.status == 2
    assert "did you mean bit/R50x3 or bit/R50x1" in ran.err


def test_models_as_json_say_which_is_the_default(command):
    listed = command("models", "--json").json
    assert [one["name"] for one in listed] == models.names()
    assert [one["name"] for one in listed if one["default"]] == [models.DEFAULT]
    assert all(set(one) == {"name", "towers", "dim", "weights", "licence", "default"} for one in listed)


def test_fetching_the_bundled_model_says_where_it_is(command):
    (path,) = command("fetch", "clip/demo", "--json").json["paths"]
    assert (Path(path) / "config.json").exists()


@pytest.mark.parametrize("name", ["clop/demo", "colours/plain"])
def test_a_model_that_cannot_be_fetched_is_one_sentence(command, name):
    ran = command("fetch", name)
    assert (ran.status, ran.out) == (2, "")
    assert name in ran.err
    assert len(ran.err.splitlines()) == 1


def test_a_model_that_is_not_in_the_cache_is_refused_offline(command, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    ran = command("fetch", "clip/nobody/has-this", "--offline")
    assert (ran.status, ran.out) == (2, "")
    assert "nobody/has-this" in ran.err
    assert "clip/demo" in ran.err
    assert len(ran.err.splitlines()) == 1


def sentences(err: str) -> list[str]:
    """What a command of its own process said, but for the line about a model that takes long to load."""
    return [line for line in err.splitlines() if not line.startswith("loading ")]


def test_without_a_model_and_a_network_the_message_names_what_works(start, photos, tmp_path):
    blocked = {
        "https_proxy": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path / "hub"),
    }
    running = start("encode", photos, "-o", tmp_path / "c", env={**os.environ, **blocked})
    out, err = running.communicate(timeout=PATIENCE_S)
    assert (running.returncode, out) == (2, ""), err
    assert models.DEFAULT.removeprefix("clip/") in err
    assert "--model clip/demo" in err
    assert len(sentences(err)) == 1
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("said", "in_flags"),
    [
        ("shorten it, or pass truncate=True", "shorten it"),
        ("shorten it, or load with truncate=True", "shorten it"),
        ("pass its path as weights=; then", "pass its path as --weights; then"),
        ("give weights=PATH, or a name", "give --weights PATH, or a name"),
        ("with precision='auto' or engine='torch'", "with --precision auto or --engine torch"),
        ("no code; definition= is the Python file", "no code; -O definition=... is the Python file"),
        ("add -O definition=FILE", "add -O definition=FILE"),
        ("replace it with overwrite=True", "replace it with --overwrite"),
        ('a map with method="umap" needs', "a map with --method umap needs"),
        ("method='x'; accepted", "--method x; accepted"),
        ("--weights=a.pt: no such file", "--weights=a.pt: no such file"),
        ("photos/source=web/a.jpg: no such file", "photos/source=web/a.jpg: no such file"),
        ("device=nikon/a.jpg: no such file", "device=nikon/a.jpg: no such file"),
    ],
)
def test_errors_of_the_library_are_said_in_flags(said, in_flags):
    assert error_sentence(WeightsError(said)) == in_flags


def test_the_weights_of_a_custom_model_are_described_in_flags(command):
    assert "--weights PATH to a state_dict, -O definition=PATH" in command("models", "custom").out


# ---- doctor ----


def test_doctor_shows_the_machine(command):
    ran = command("doctor")
    assert ran.status == 0
    for word in ("python", "torch", "memory", "instructions", "cache", "cuda", "extra heif"):
        assert word in ran.out


def test_doctor_measures_a_model_and_names_the_limit(command, photos):
    report = command("doctor", "--model", "colours/plain", "--json", *photos.glob("*.png")).json
    stages = report["stages"]
    assert (stages["model"], stages["images"]) == ("colours/plain", 3)
    assert min(stages["read_ms"], stages["preprocess_ms"], stages["embed_ms"]) > 0
    assert stages["limit"] in ("read", "preprocess", "embed")
    assert report["processor"]["cores"] >= 1
    assert "limits; expect about" in command("doctor", "--model", "colours/plain").out


def test_doctor_needs_a_model_for_images(command, photos):
    ran = command("doctor", photos / "red.png")
    assert ran.status == 2
    assert "--model" in ran.err


def test_doctor_says_what_is_wrong_with_an_image_or_a_name_before_anything_else(command, photos, broken):
    for arguments, said in ((("colours/plain", broken[0]), "not an image"), (("clop/demo",), "clop/demo")):
        ran = command("doctor", "--model", *arguments)
        assert (ran.status, ran.out) == (2, "")
        assert said in ran.err


def test_doctor_shows_the_times_that_the_shares_are_of(capsys):
    _show_stages(stages())
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["read", "4.00", "2.00", "15", "%"] in lines
    assert ["preprocess", "2.00", "1.00", "8", "%"] in lines
    assert ["embed", "10.00", "77", "%"] in lines


def stages(**changes) -> Stages:
    measured = {"read_ms": 4.0, "preprocess_ms": 2.0, "embed_ms": 10.0}
    return Stages(**{**measured, "images": 8, "batch_size": 8, "workers": 2, "shared": True, **changes})


def test_stages_on_the_same_cores_add_up():
    assert stages().limit == "embed"
    assert stages().rate == pytest.approx(1000 / (4 / 2 + 2 / 2 + 10))


def test_stages_beside_a_device_of_its_own_overlap():
    fast = stages(shared=False, embed_ms=0.5)
    assert fast.limit == "read"
    assert fast.rate == pytest.approx(1000 / 3)
    assert stages(shared=False).rate == pytest.approx(100)


# ---- the tour ----


def test_the_tour_needs_no_folder_named(command, tmp_path, monkeypatch):
    def draw(images):
        raise OSError(f"drawing in {images}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("image_encoders.cli.demo._draw", draw)
    monkeypatch.setattr("image_encoders.cli.demo._import_nets", lambda: None)
    ran = command("demo")
    assert (ran.status, ran.err) == (2, "error: drawing in image-encoders-demo/images\n")


@pytest.mark.parametrize("other", ["mine.txt", "images/mine.png"])
def test_the_tour_refuses_a_folder_of_other_files_and_leaves_it_alone(command, tmp_path, other):
    mine = tmp_path / other
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    ran = command("demo", tmp_path)
    assert (ran.status, ran.out) == (2, "")
    assert other in ran.err
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == [mine]


@pytest.mark.slow
def test_the_tour_shows_what_it_says_and_can_be_taken_again_with_a_page_at_its_end(
    command, start, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    ran = command("demo", "tour")
    assert ran.status == 0, ran.err
    assert "300 images and two broken files" in ran.out
    assert "300 encoded, 2 failed" in ran.out
    assert "breaks-off.jpg" in ran.out
    assert "a-text.jpg" in ran.out
    assert ran.out.count("$ image-encoders search") == 4
    assert (tmp_path / "tour" / "red-circles.html").read_text().count("data:image/jpeg") == 12
    again = start("demo", "tour", "--serve", "--no-open", "--port", 0, stderr=subprocess.STDOUT)
    said = []
    url = next(found[1] for line in again.stdout if said.append(line) or (found := PAGE.search(line)))
    assert "300 unchanged, 2 failed" in "".join(said)
    answer = httpx.get(f"{url}/search.json", params={"q": "a red circle"}, timeout=120, trust_env=False)
    assert answer.json()["count"] == 300
    again.terminate()
    assert again.wait(PATIENCE_S) == 0


# ---- every command ----


def test_no_command_shows_the_help(command):
    ran = command()
    assert ran.status == 2
    assert "Commands:" in ran.out + ran.err


def test_an_unknown_command_is_refused(command):
    ran = command("encoed")
    assert ran.status == 2
    assert "encoed" in ran.err
    assert "encode" in ran.err.replace("encoed", "")


def test_the_help_says_how_a_run_in_the_background_is_stopped(command):
    for arguments in (("--help",), ("encode", "--help")):
        text = " ".join(command(*arguments).out.split())
        assert "nohup" in text
        assert "SIGTERM" in text


def test_a_command_started_without_ctrl_c_ignores_it_and_stops_cleanly_on_sigterm(start, photos, tmp_path):
    ignored = ["sh", "-c", 'trap \'\' INT; exec "$0" "$@"']
    running = start("encode", "-", "-o", tmp_path / "c", "-m", "clip/demo", stdin=subprocess.PIPE, through=ignored)
    give(running, photos / "red.png")
    running.send_signal(signal.SIGINT)
    give(running, photos / "blue.png")
    assert ignores(running, signal.SIGINT)
    running.send_signal(signal.SIGTERM)
    running.wait(PATIENCE_S)
    out, err = running.communicate()
    assert (running.returncode, out) == (130, ""), err
    assert "run the same command again to resume" in err


def give(running: subprocess.Popen[str], path: Path) -> None:
    """Write a line of the list, and wait until the command has read it: it is in the midst of its run."""
    running.stdin.write(f"{path}\n")
    running.stdin.flush()
    until = time.monotonic() + PATIENCE_S
    while struct.unpack("i", fcntl.ioctl(running.stdin, termios.FIONREAD, bytes(4)))[0]:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < until, "the line is not read"
        time.sleep(0.02)


def ignores(running: subprocess.Popen[str], number: signal.Signals) -> bool:
    status = Path(f"/proc/{running.pid}/status").read_text()
    return bool(int(re.search(r"SigIgn:\s*(\w+)", status)[1], 16) >> (number - 1) & 1)


def test_an_interrupted_command_ends_with_130_and_a_second_one_goes_on(start, photos, tmp_path):
    running = start("encode", "-", "-o", tmp_path / "c", "-m", "clip/demo", stdin=subprocess.PIPE)
    give(running, photos / "red.png")  # and now it waits for the rest of the list
    running.send_signal(signal.SIGINT)
    running.wait(PATIENCE_S)
    out, err = running.communicate()
    assert (running.returncode, out) == (130, ""), err
    assert "run the same command again to resume" in err
    assert "Traceback" not in err
    again = start("encode", photos, "-o", tmp_path / "c", "--json")
    out, err = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, err
    assert json.loads(out)["rows"] == 6


def test_a_disk_that_is_full_ends_with_one_sentence_and_more_space_mends_it(start, photos, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        running = start("encode", photos, "-o", small / "c", "-m", "clip/demo")
        out, err = running.communicate(timeout=PATIENCE_S)
        assert (running.returncode, out) == (2, ""), err
        assert len(sentences(err)) == 1
        assert "space" in err
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        again = start("encode", photos, "-o", small / "c", "-m", "clip/demo", "--json")
        out, err = again.communicate(timeout=PATIENCE_S)
        assert again.returncode == 0, err
        assert json.loads(out)["rows"] == 6
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


@pytest.mark.parametrize("recipe", [{}, None, [], {"name": "colours/plain"}, {"name": 7, "options": {}}])
def test_a_collection_that_does_not_say_how_to_load_its_encoder_is_one_sentence(command, photos, tmp_path, recipe):
    command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain")
    mark = tmp_path / "c" / "collection.json"
    written = json.loads(mark.read_text())
    mark.write_text(json.dumps({**written, "encoder": {**written["encoder"], "recipe": recipe}}))
    for arguments in (
        ("search", tmp_path / "c", "red"),
        ("encode", photos, "-o", tmp_path / "c"),
        ("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain"),
    ):
        ran = command(*arguments)
        assert (ran.status, ran.out) == (2, "")
        assert "recipe in collection.json" in ran.err
        assert len(ran.err.splitlines()) == 1
