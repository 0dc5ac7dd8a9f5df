"""Commands whose standard streams are closed or full, and how they end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def shell(redirected: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, its streams as the shell makes them."""
    words = ["sh", "-c", f'exec "$0" -m image_encoders "$@" {redirected}', sys.executable, *map(str, arguments)]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, env=buffered)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_does_not_stop_a_command(closed):
    ran = shell(closed, "models", "--json")
    assert ran.returncode == 0
    assert ran.stderr == ""
    assert ran.stdout == "" if ">&-" in closed.split() else json.loads(ran.stdout)


def test_with_all_streams_closed_nothing_that_is_said_gets_into_a_file(command, photos, tmp_path):
    command("encode", photos, "-o", tmp_path / "c", "-m", "colours/plain")
    for name, redirected in (("open.npy", ""), ("closed.npy", "<&- >&- 2>&-")):
        assert shell(redirected, "export", tmp_path / "c", tmp_path / name).returncode == 0
    assert (tmp_path / "open.npy").read_bytes() == (tmp_path / "closed.npy").read_bytes()


def test_a_list_on_a_closed_standard_input_is_refused(tmp_path):
    ran = shell("<&-", "encode", "-", "-o", tmp_path / "c", "--model", "clip/demo")
    assert ran.returncode == 2
    assert "standard input is closed" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert not (tmp_path / "c").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("arguments", [("--help",), ("models",), ("encode", "--help"), ("--version",)])
def test_what_cannot_be_written_is_one_sentence(arguments):
    ran = shell(">/dev/full", *arguments)
    assert ran.returncode == 2
    assert "no space left" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_with_debug_what_cannot_be_written_shows_where_it_comes_from():
    assert "Traceback" in shell(">/dev/full", "--debug", "models").stderr


@pytest.mark.parametrize("arguments", ["--help", "encode --help", "models"])
def test_a_reader_that_has_seen_enough_is_no_error(arguments):
    ran = shell(f"{arguments} | true; echo", "--debug")
    assert (ran.stdout, ran.stderr) == ("\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_an_error_that_cannot_be_said_still_has_its_status(tmp_path):
    assert shell("2>/dev/full", "search", tmp_path / "nowhere", "words").returncode == 2
    assert shell(">/dev/full 2>&1", "models").returncode == 2


def test_ctrl_c_is_ignored_while_it_is_answered_and_ends_what_is_waited_for_after_that():
    code = """
import os, signal, time
from image_encoders.cli.shutdown import interrupted
with interrupted():
    os.kill(os.getpid(), signal.SIGINT)
    print("answered", flush=True)
os.kill(os.getpid(), signal.SIGINT)
time.sleep(60)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "answered\n", "")


def test_ctrl_c_waits_for_the_end_of_what_would_not_survive_it():
    code = """
import os, signal
from image_encoders.cli.shutdown import interrupts_held
try:
    with interrupts_held():
        os.kill(os.getpid(), signal.SIGINT)
        print("held", flush=True)
    print("lost", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (ran.stdout, ran.stderr) == ("held\ninterrupted\n", "")


INTERRUPTED_IMPORT = """
import os, signal, sys
from image_encoders.cli import main

def interrupt(event, arguments):
    if event == "import" and arguments[0] == MODULE and not interrupts:
        interrupts.append(event)
        os.kill(os.getpid(), signal.SIGINT)

interrupts = []
sys.addaudithook(interrupt)
try:
    main()
finally:
    assert interrupts
"""


@pytest.mark.parametrize("module", ["torch", "torch.overrides"])
def test_ctrl_c_while_torch_is_imported_ends_a_command_as_at_any_other_time(module, photos, tmp_path):
    code = INTERRUPTED_IMPORT.replace("MODULE", repr(module))
    arguments = ("encode", photos, "-o", tmp_path / "c", "-m", "clip/demo", "--engine", "torch")
    words = [sys.executable, "-c", code, *map(str, arguments)]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=300)
    said = [line for line in ran.stderr.splitlines() if not line.startswith("loading ")]  # which takes long here
    assert (ran.returncode, ran.stdout, said) == (130, "", ["interrupted"])


def test_ctrl_c_is_not_lost_in_an_import_that_takes_it_for_a_missing_package(tmp_path):
    """As torch's library does where it looks for numpy."""
    (tmp_path / "looks.py").write_text("try:\n    import optional\nexcept BaseException:\n    pass\n")
    (tmp_path / "optional.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nprint('imported', flush=True)\n"
    )
    code = """
import signal
from image_encoders.cli.shutdown import hold_interrupts
hold_interrupts()
import looks
try:
    signal.pause()
except KeyboardInterrupt:
    print("interrupted")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    words = [sys.executable, "-c", code]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment)
    assert (ran.returncode, ran.stdout) == (0, "imported\ninterrupted\n"), ran.stderr


def test_ctrl_c_is_not_lost_in_a_finalizer():
    code = """
import os, signal
from image_encoders.cli.shutdown import hold_interrupts

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        print("finalized", flush=True)

class Broken:
    def __del__(self):
        raise OSError("broken")

hold_interrupts()
Broken()
try:
    Finalized()
    signal.pause()
except KeyboardInterrupt:
    print("interrupted")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (ran.returncode, ran.stdout) == (0, "interrupted\n")
    assert ran.stderr.count("Exception ignored in") == 1
    assert ran.stderr.endswith("OSError: broken\n")


def test_ctrl_c_that_is_ignored_stays_so():
    code = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
from image_encoders.cli.shutdown import hold_interrupts
hold_interrupts()
print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert ran.stdout == "True\n"
