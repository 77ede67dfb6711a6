"""What the tests of the shop share."""

from __future__ import annotations

import pytest
import shop
import tasks

from jobs_async import Supervisor


@pytest.fixture
def jobs_app() -> Supervisor:
    """The `jobs` fixture stands in for the Supervisor of the shop and has its workers; shop.db is never touched."""
    return shop.jobs


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a world of its own."""
    monkeypatch.setattr(tasks, "payments", tasks.Payments())
    monkeypatch.setattr(tasks, "outbox", [])
