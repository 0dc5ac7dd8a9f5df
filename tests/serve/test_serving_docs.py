"""docs/serving.md says what the service does; the container starts what it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_type_hints

import httpx

from image_encoders.serve import connections, guards
from image_encoders.serve.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text()
DOCKERFILE = (ROOT / "containers" / "serve.Dockerfile").read_text()
SIZES = {30: "GiB", 20: "MiB", 10: "KiB"}
TYPES = get_type_hints(Settings)


def flag(one: Field[Any]) -> str:
    name = one.name.removesuffix("s") if TYPES[one.name] == tuple[str, ...] else one.name
    return "--" + name.replace("_", "-")


def shown(one: Field[Any]) -> str:
    """A default as the page shows it."""
    value, unit = one.default, one.metadata["unit"]
    if value is None or value == ():
        return "none"
    if value is False:
        return "off"
    if unit == "bytes":
        power = next(power for power in SIZES if value % (1 << power) == 0)
        return f"{value >> power} {SIZES[power]}"
    return {"s": "{:g} s", "px": "{:,}"}.get(unit, "{}").format(value)


def test_the_table_of_limits_is_that_of_the_settings() -> None:
    rows = re.findall(r"^\| `(--[a-z-]+)` \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    assert rows == [(flag(one), shown(one), one.metadata["help"]) for one in fields(Settings)]


def test_the_command_has_an_option_for_each_setting_and_says_the_same() -> None:
    words = [sys.executable, "-m", "image_encoders", "serve", "--help"]
    environment = {**os.environ, "TERM": "dumb"}
    said = subprocess.run(words, capture_output=True, text=True, check=True, env=environment, timeout=300).stdout
    said = " ".join(said.split())
    for one in fields(Settings):
        assert re.search(rf"{flag(one)}( [A-Z]+)? {re.escape(one.metadata['help'])}", said), flag(one)


def test_the_limits_that_no_option_sets_are_those_of_the_code() -> None:
    assert f"{connections.MAX_HEADERS} headers of {connections.MAX_HEAD_BYTES >> 10} KiB in all" in PAGE
    assert f"{connections.MAX_PIPELINED} pipelined requests" in PAGE
    assert f"less than\n{connections.SLOWEST >> 10} KiB/s" in PAGE
    assert f"at least {guards.MIN_KEY_CHARS}\ncharacters" in PAGE
    assert f"a cookie for {guards.COOKIE_DAYS} days" in PAGE


def test_the_endpoints_that_are_named_are_there(client: httpx.Client) -> None:
    table = PAGE.split("| endpoint |")[1].split("\n\n")[0]
    named = re.findall(r"(GET|POST) (/[\w/.]+)", table)
    described = client.get("/openapi.json").json()["paths"]
    for method, path in named:
        if path == "/search":  # a page
            assert client.get(path).status_code == 200
        else:
            assert method.lower() in described[path.replace("KEY", "{key}")], path


def test_each_status_of_the_table_is_one_that_has_a_reason() -> None:
    table = PAGE.split("| status |")[1].split("\n\n")[0]
    statuses = [int(one) for one in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
    assert statuses == sorted(statuses)
    assert {400, 401, 403, 404, 408, 413, 415, 421, 422, 429, 431, 503} == set(statuses)


def test_each_guard_is_explained() -> None:
    explained = PAGE.split("## Security")[1]
    for word in ("--urls", "--api-key", "--allowed-host", "--cors-origin", "--no-auth", "--json-logs"):
        assert word in explained, word


def test_the_container_starts_the_service_as_the_page_says() -> None:
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)
    words = json.loads(entry)
    assert words[:2] == ["image-encoders", "serve"]
    (port,) = re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)
    assert words[words.index("--port") + 1] == port
    assert f"127.0.0.1:{port}/health/ready" in DOCKERFILE
    assert DOCKERFILE.rindex("USER encoder") < DOCKERFILE.index("ENTRYPOINT")
    for source in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE):
        assert all((ROOT / name).exists() for name in source.split())
    for name in re.findall(r"containers/[\w.]+", PAGE):
        assert (ROOT / name).is_file(), name
    assert re.findall(r"IMAGE_ENCODERS_SERVE_\w+", DOCKERFILE) == ["IMAGE_ENCODERS_SERVE_API_KEYS"]
    assert "api_keys" in TYPES
