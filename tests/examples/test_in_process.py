"""Jobs that run in this process and are watched."""

from __future__ import annotations

import pytest

from examples.in_process import main


async def test_every_job_is_tried_and_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    await main()
    assert capsys.readouterr().out.splitlines() == [
        "add_up started for 2026-03-01",
        "add_up finished: success",
        "send_digest started for 2026-03-01",
        "send_digest finished: success",
        "send_digest started for 2026-03-01",
        "send_digest finished: failure",
        "completed: add_up send_digest",
        "failed: send_digest, 'nobody' is no address",
    ]
