"""Custom models on the command line: what somebody's own code does to the process."""

from __future__ import annotations

import re

import pytest
import torch

DEFINITION = """
import sys
from torch import nn
{top}
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        {made}
        self.features = nn.Conv2d(3, 4, 1)
    def forward(self, x):
        {run}
        return self.features(x)
def small(pixels):
    {prepared}
    return pixels[:16, :16].transpose(2, 0, 1) / 255
"""
QUIET = {"top": "pass", "made": "pass", "run": "pass", "prepared": "pass"}


@pytest.fixture
def custom(tmp_path):
    """custom(run="sys.exit(0)") gives the arguments that choose a net which does so."""

    def arguments(**code: str) -> list[str]:
        (tmp_path / "model.py").write_text(DEFINITION.format(**{**QUIET, **code}))
        conv = torch.nn.Conv2d(3, 4, 1)
        torch.save({f"features.{name}": value for name, value in conv.state_dict().items()}, tmp_path / "state.pth")
        options = (f"definition={tmp_path / 'model.py'}", "class_name=Net", "preprocess=small", "input_shape=[3,16,16]")
        chosen = ["--model", "custom", "--weights", str(tmp_path / "state.pth"), "--precision", "float32"]
        return [*chosen, *(word for option in options for word in ("-O", option))]

    return arguments


@pytest.mark.parametrize("where", ["top", "made", "run"])
def test_a_definition_that_exits_gives_no_collection_and_status_2(where, command, photos, custom, tmp_path):
    ran = command("encode", photos, "-o", tmp_path / "c", *custom(**{where: "sys.exit(0)"}))
    assert ran.status == 2
    assert "model.py" in ran.err
    assert "SystemExit: 0" in ran.err
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("where", "code"),
    [("run", "if x.amin((1, 2, 3)).max() > 0.9: sys.exit(0)"), ("prepared", "if pixels.mean() > 100: sys.exit(0)")],
)
def test_a_net_that_exits_at_one_image_fails_for_that_image(where, code, command, photos, custom, tmp_path):
    from PIL import Image

    Image.new("RGB", (40, 30), "white").save(photos / "white.png")
    ran = command("encode", photos, "-o", tmp_path / "c", *custom(**{where: code}), "--json")
    assert ran.status == 3
    assert (ran.json["encoded"], ran.json["failed"]) == (6, 1)
    assert "SystemExit: 0" in ran.json["failures"][0]["message"]


@pytest.mark.parametrize("where", ["top", "made", "run", "prepared"])
def test_what_a_definition_prints_is_not_among_the_results(where, command, photos, custom, tmp_path):
    ran = command("encode", photos, "-o", tmp_path / "c", *custom(**{where: "print('hello')"}), "--json")
    assert ran.status == 0
    assert ran.json["encoded"] == 6
    assert "hello" in ran.err


def test_what_a_definition_prints_is_not_in_the_summary_either(command, photos, custom, tmp_path):
    ran = command("encode", photos, "-o", tmp_path / "c", *custom(run="sys.stdout.write('hello')"))
    assert ran.status == 0
    assert ran.out.startswith("6 ")
    assert "hello" not in ran.out


def test_standard_output_is_as_it_was_after_a_command(command, photos, custom, tmp_path):
    import sys

    before = sys.stdout
    command("encode", photos, "-o", tmp_path / "c", *custom(top="sys.exit(0)"))
    assert sys.stdout is before


def test_every_command_prints_its_results_where_nothing_else_is_printed():
    from pathlib import Path

    from image_encoders import cli

    for module in Path(cli.__file__).parent.glob("*.py"):
        text = module.read_text()
        if module.stem not in ("__init__", "printing") and re.search(r"(?<![\w.])print\(", text):
            assert re.search(r"cli\.printing import [^)]*\bprint\b", text), module.name
