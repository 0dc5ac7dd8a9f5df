"""Processes that the tests of runs start."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from image_encoders.bulk.sources import contents


@pytest.fixture
def start_script() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """start_script(SCRIPT, *arguments) -> a process that runs the script, with pipes; it does not outlive the test."""
    started: list[subprocess.Popen[str]] = []

    def start(script: Path, *arguments: str | Path | int) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen([sys.executable, str(script), *map(str, arguments)], text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def waiting() -> Callable[[], int]:
    """waiting() -> how many bytes wait that were read ahead, without those that failures in earlier tests held."""
    gc.collect()
    return lambda: contents._waiting
