"""Enqueue, and complete, inside the application's own transaction."""

from __future__ import annotations

from pathlib import Path

import aiosqlite
import pytest

from examples import transactional_sqlalchemy
from examples.transactional import main
from tests.applications import url


async def test_the_job_is_stored_with_the_row_or_not_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "app.db"
    await main(path)
    assert capsys.readouterr().out.splitlines() == [
        "welcome, ada@example.org",
        "signed up already; 1 job was ever stored",
    ]
    async with aiosqlite.connect(path) as db:
        assert list(await db.execute_fetchall("SELECT email FROM customers")) == [("ada@example.org",)]


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
async def test_a_charge_is_booked_once_whatever_its_handler_does_then(
    database: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = (
        f"sqlite+aiosqlite:///{tmp_path}/shop.db" if database == "sqlite" else url(request.getfixturevalue("pg_dsn"))
    )
    await transactional_sqlalchemy.main(address)
    assert capsys.readouterr().out.splitlines() == ["order 1: 500 cents", "order 2: 1200 cents", "2 charges"]
