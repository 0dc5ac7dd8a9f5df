"""The soak in its quick form: `make soak` runs it for half an hour."""

from __future__ import annotations

from service_process import Server
from soak import soak


def test_at_full_load_no_answer_is_lost_or_mixed_and_memory_is_flat(server: Server) -> None:
    found = soak(server, 4.0, broken=0.1)
    found.check()
