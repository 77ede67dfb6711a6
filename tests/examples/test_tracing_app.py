"""The traces of one request, as they are printed."""

from __future__ import annotations

import re
from functools import partial

import pytest
from starlette.testclient import TestClient

from examples import tracing_app


def test_a_request_its_job_and_the_job_of_that_are_linked(capsys: pytest.CaptureFixture[str]) -> None:
    with TestClient(tracing_app.app) as client:
        answer = client.post("/orders")
        assert answer.status_code == 202
        assert client.portal is not None
        child_id = client.portal.call(partial(tracing_app.jobs.result, answer.json()["job"], timeout=20))
        child = client.portal.call(partial(tracing_app.jobs.wait, child_id, timeout=20))
    assert child.result == "receipt of order 7"

    printed = set(capsys.readouterr().out.splitlines())
    names = {trace: f"trace {number}" for number, trace in enumerate(_in_order(printed), start=1)}
    told = {re.sub(r"\b[0-9a-f]{8}\b", lambda found: names[found[0]], line) for line in printed}
    assert told == {
        "trace 1 send default     ship",
        "trace 1 POST /orders",
        "trace 2 send mail        send_receipt",
        "trace 2 process default  ship completed, sent by trace 1",
        "trace 3 render receipt",
        "trace 3 process mail     send_receipt completed, sent by trace 2",
    }


def _in_order(printed: set[str]) -> list[str]:
    """The ids of the three traces: of the request, of its job, of the job of that."""
    return [
        next(line[:8] for line in printed if name in line)
        for name in ("POST /orders", "process default", "process mail")
    ]
