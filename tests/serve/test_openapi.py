"""What schemathesis draws from the service's own description: no answer is a 500, and all errors have one form."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_input import encoded, photo
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from service_process import Server, serving

schemathesis = pytest.importorskip("schemathesis")

EXAMPLES = 25  # of each endpoint and mode
ON_PURPOSE = (503,)  # what a service answers where it cannot do something just now


@pytest.fixture(scope="module")
def searching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service with a collection of a few images."""
    folder: Path = tmp_path_factory.mktemp("searched")
    (folder / "images").mkdir()
    for number in range(8):
        content = encoded(photo(40 + 8 * number, 64).rotate(40 * number), "JPEG")
        (folder / "images" / f"{number}.jpg").write_bytes(content)
    words = [sys.executable, "-m", "image_encoders", "encode", str(folder / "images"), "-o", str(folder / "collection")]
    subprocess.run([*words, "--model", "clip/demo", "--precision", "float32", "-q"], check=True, timeout=300)
    with serving("--collection", str(folder / "collection"), "--urls", "--deadline", "20") as one:
        yield one


@pytest.mark.filterwarnings("ignore")
def test_no_request_that_the_description_suggests_ends_in_a_500(searching: Server) -> None:
    with searching.client() as client:
        described = client.get("/openapi.json").json()
        schema = schemathesis.openapi.from_dict(described)
        tried: set[str] = set()
        for found in schema.get_all_operations():
            operation = found.ok()
            for mode in schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE:

                @settings(
                    max_examples=EXAMPLES,
                    deadline=None,
                    derandomize=True,
                    database=None,
                    phases=[Phase.explicit, Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                @given(case=operation.as_strategy(generation_mode=mode))
                def draw(case: object) -> None:
                    answer = case.call(base_url=searching.url, timeout=60)  # type: ignore[attr-defined]
                    assert answer.status_code < 500 or answer.status_code in ON_PURPOSE, answer.text
                    if answer.status_code >= 400 and answer.request.method != "HEAD":
                        problem = json.loads(answer.content)
                        assert problem["status"] == answer.status_code
                        assert problem["error"]["message"] == problem["detail"]

                try:
                    draw()
                except Unsatisfiable:  # a request without anything in it cannot be made wrong
                    assert mode is schemathesis.GenerationMode.NEGATIVE
            tried.add(operation.label)
        assert len(tried) == sum(len(methods) for methods in described["paths"].values())
        assert client.get("/health/ready").status_code == 200
    assert not [line for line in searching.said if "Traceback" in line or " ERROR " in line]
