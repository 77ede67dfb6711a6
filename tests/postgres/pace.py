"""How patient the PostgreSQL store is: little, so that a test need not wait, or for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jobs_async.runtime import engine, janitor, patience
from jobs_async.stores.postgres import lane, lifeline, line, listener, server


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fraction of what a call, a connection, an echo and a Supervisor are given."""
    _give(monkeypatch, call=1.5, connect=1.0, supervisor=2.0)
    monkeypatch.setattr(line, "MIN_SECONDS", 0.1)
    monkeypatch.setattr(lifeline, "RENEW_SECONDS", 0.3)
    monkeypatch.setattr(listener, "ECHO_EVERY", 0.3)
    monkeypatch.setattr(listener, "ECHO_SECONDS", 0.3)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call is never given up, so that what ends did not end because its time was up."""
    _give(monkeypatch, call=EVER, connect=EVER, supervisor=EVER)


EVER = 10_000.0


def _give(monkeypatch: pytest.MonkeyPatch, *, call: float, connect: float, supervisor: float) -> None:
    monkeypatch.setitem(_defaults(lane.Lane.do), "patience", call)
    monkeypatch.setitem(_defaults(line.Line.call), "seconds", call)
    monkeypatch.setattr(line, "CALL_SECONDS", call)
    for module in (line, server):
        monkeypatch.setattr(module, "CONNECT_SECONDS", connect)
    monkeypatch.setattr(patience, "STORE_SECONDS", supervisor)
    monkeypatch.setattr(janitor.Janitor._hand_back_strays, "__defaults__", (supervisor,))
    monkeypatch.setattr(engine, "CANCEL_GRACE", 0.3)


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Of its keywords."""
    return function.__kwdefaults__ or {}
