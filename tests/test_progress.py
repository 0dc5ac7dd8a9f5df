"""The one display of progress."""

import os
import pty
import subprocess
import sys

import image_encoders as ie
from image_encoders.progress import bar

SHOW = """
from image_encoders.progress import bar
with bar("encoding images") as show:
    show(7, 20)
    show(1, None, "12.5 MB")
"""


def on_a_terminal(code: str) -> str:
    """What a program of its own writes on a terminal that is its standard error."""
    terminal, end = pty.openpty()
    try:
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "NO_COLOR": "1"}
        subprocess.run([sys.executable, "-c", code], stderr=end, check=True, timeout=300, env=environment)
        return os.read(terminal, 1 << 16).decode()
    finally:
        os.close(terminal)
        os.close(end)


def test_a_bar_on_a_terminal_says_what_is_done_and_goes_when_it_is():
    written = on_a_terminal(SHOW)
    assert "encoding images" in written
    assert "12.5 MB" in written
    assert written.rstrip().endswith("\x1b[2K")  # the line is erased


def test_without_a_terminal_nothing_is_shown(capfd):
    with bar("encoding images") as show:
        show(7, 20)
    ie.load("clip/demo", device="cpu", precision="float32", engine="torch").encode_text(["a", "b"])
    assert capfd.readouterr().err == ""


def test_an_encoder_shows_a_bar_where_it_is_asked_to(capfd):
    encoder = ie.load("clip/demo", device="cpu", precision="float32", engine="torch")
    encoder.encode_text(["a red circle"] * 3, batch_size=2, progress=True)
    assert "encoding text" in capfd.readouterr().err
