"""Both web apps: enqueue in a request, and look until the job has ended."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from examples import fastapi_app, web_app
from jobs_async import Job, Supervisor


def wait(client: TestClient, jobs: Supervisor, job_id: int) -> Job[Any]:
    """Wait in the app's event loop until a job has ended."""
    assert client.portal is not None
    return client.portal.call(partial(jobs.wait, job_id, timeout=20))


@pytest.fixture(params=["starlette", "fastapi"])
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A running app, its Supervisor, and how to post text to it."""
    monkeypatch.chdir(tmp_path)
    module: Any = {"starlette": web_app, "fastapi": fastapi_app}[request.param]
    form = "json" if request.param == "starlette" else "params"
    with TestClient(module.app) as client:
        yield client, module.jobs, lambda path, **fields: client.post(path, **{form: fields})


def test_an_async_job_is_enqueued_by_a_request_and_shows_progress_and_result(site: Any) -> None:
    client, jobs, post = site
    answer = post("/reports", title="Sales")
    assert answer.status_code == 202
    job_id = answer.json()["job"]
    assert client.get(f"/jobs/{job_id}").json()["state"] in ("available", "executing", "completed")
    wait(client, jobs, job_id)
    assert client.get(f"/jobs/{job_id}").json() == {
        "state": "completed",
        "attempt": 1,
        "progress": 1.0,
        "result": "Sales, 3 pages",
        "error": None,
    }


def test_a_plain_function_runs_in_a_thread(site: Any) -> None:
    client, jobs, post = site
    job_id = post("/words", text="to be or not to be").json()["job"]
    assert wait(client, jobs, job_id).queue == "cpu"
    assert client.get(f"/jobs/{job_id}").json()["result"] == {"to": 2, "be": 2, "or": 1, "not": 1}


def test_an_unknown_job_is_not_found(site: Any) -> None:
    client, _, _ = site
    assert client.get("/jobs/12345").status_code == 404
