"""No checkpoint runs code, crashes, hangs or takes memory that its file does not account for."""

from __future__ import annotations

import json
import subprocess
import sys

import hostile_checkpoints
import pytest


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    command = [sys.executable, hostile_checkpoints.__file__, str(tmp_path_factory.mktemp("hostile"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


def test_hostile_checkpoints_are_refused(outcomes: dict[str, str]) -> None:
    assert len(outcomes) > 90
    others = outcomes.keys() - hostile_checkpoints.HARMLESS
    assert {title: outcomes[title] for title in others if outcomes[title] != "refused"} == {}


def test_odd_but_plain_values_load(outcomes: dict[str, str]) -> None:
    assert {outcomes[title] for title in hostile_checkpoints.HARMLESS} == {"loaded"}
