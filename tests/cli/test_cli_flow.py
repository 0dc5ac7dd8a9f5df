"""`flow` where Jina is not installed; tests/jina has the rest."""

import importlib.util

import pytest


@pytest.mark.skipif(importlib.util.find_spec("docarray") is not None, reason="Jina is installed here")
def test_without_the_extra_one_sentence_says_what_to_install(command, tmp_path):
    path = tmp_path / "flow.yml"
    path.write_text("jtype: Flow\nexecutors: []\n")
    ran = command("flow", path)
    assert (ran.status, ran.out) == (2, "")
    assert "pip install 'image-encoders[jina]'" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_a_file_that_is_not_there_is_named(command):
    ran = command("flow", "nowhere.yml")
    assert (ran.status, ran.out) == (2, "")
    assert "nowhere.yml: no such Flow file" in ran.err
