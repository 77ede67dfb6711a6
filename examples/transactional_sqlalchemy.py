"""Exactly once, with SQLAlchemy: an order enqueues its charge, and the charge is booked and completed, in transactions.

    python examples/transactional_sqlalchemy.py
    python examples/transactional_sqlalchemy.py postgresql+asyncpg://user@host/database

The job is stored with the order or not at all. Its handler books the charge and completes the job with one commit, so
that a crash, wherever it comes, leaves neither a charge booked twice nor one forgotten.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from jobs_async import Job, JobContext, Supervisor, worker


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "shop_orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    cents: Mapped[int]


class Charge(Base):
    __tablename__ = "shop_charges"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int]
    cents: Mapped[int]


new_session = async_sessionmaker[AsyncSession](expire_on_commit=False)


async def place_order(cents: int) -> Job[str]:
    """Store an order together with the job that will charge for it."""
    async with new_session.begin() as session:
        order = Order(cents=cents)
        session.add(order)
        await session.flush()  # so that it has its number
        return await charge.options(connection=session).enqueue(order.id)


@worker(context=True)
async def charge(ctx: JobContext, order_id: int) -> str:
    """Book the charge of an order and complete this job, both or neither."""
    async with new_session.begin() as session:
        order = await session.get_one(Order, order_id)
        session.add(Charge(order_id=order.id, cents=order.cents))
        await ctx.complete(connection=session, result=f"order {order.id}: {order.cents} cents")
    raise RuntimeError("whatever comes now, the charge is booked, and never again")


async def main(url: str) -> None:
    engine = create_async_engine(url)
    new_session.configure(bind=engine)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)

    # The store speaks to the same database, without SQLAlchemy; a commit on SQLite wakes nobody, so it polls often.
    store = url.replace("+aiosqlite", "").replace("+asyncpg", "")
    async with Supervisor(store, workers=[charge], poll_interval=0.1) as jobs:
        for cents in (500, 1200):
            print(await jobs.result(await place_order(cents), timeout=30))
        async with new_session() as session:
            print(await session.scalar(select(func.count()).select_from(Charge)), "charges")
    await engine.dispose()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "shop.db")
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else f"sqlite+aiosqlite:///{file}"))
