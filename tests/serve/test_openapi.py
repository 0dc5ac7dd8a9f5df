"""What schemathesis draws from the service's own description: no answer is a 500, and all errors have one form."""

from __future__ import annotations

import json

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from service_process import Server

schemathesis = pytest.importorskip("schemathesis")

# What a service answers on purpose where it cannot do something just now.
ON_PURPOSE = (503,)


@pytest.mark.filterwarnings("ignore")
def test_no_request_that_the_description_suggests_ends_in_a_500(server: Server, client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(described)
    tried: set[str] = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE:

            @settings(
                max_examples=25,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def draw(case: object) -> None:
                answer = case.call(base_url=server.url, timeout=60)  # type: ignore[attr-defined]
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
