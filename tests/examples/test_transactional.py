"""Enqueue inside the application's own transaction."""

from __future__ import annotations

from pathlib import Path

import aiosqlite
import pytest

from examples.transactional import main


async def test_the_job_is_stored_with_the_row_or_not_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "app.db"
    await main(path)
    assert capsys.readouterr().out.splitlines() == [
        "welcome, ada@example.org",
        "signed up already; 1 job was ever stored",
    ]
    async with aiosqlite.connect(path) as db:
        assert list(await db.execute_fetchall("SELECT email FROM customers")) == [("ada@example.org",)]
