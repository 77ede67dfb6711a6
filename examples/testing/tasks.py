"""The workers of a small shop, and the world outside that they change."""

from __future__ import annotations

import asyncio

from jobs_async import worker

DAY = 86_400


class Payments:
    """Stands for a payment provider: a charge whose key it has seen already is not made again."""

    def __init__(self) -> None:
        self.made: list[tuple[int, int]] = []
        self._seen: set[str] = set()

    async def charge(self, order: int, cents: int, *, key: str) -> None:
        await asyncio.sleep(0)  # a request goes out
        if key not in self._seen:
            self._seen.add(key)
            self.made.append((order, cents))
        await asyncio.sleep(0)  # and its answer comes back


payments = Payments()
outbox: list[str] = []


@worker(max_attempts=5)
async def charge(order: int, cents: int) -> str:
    """Take the money, then see to the receipt; each once, however often this is run."""
    await payments.charge(order, cents, key=f"order:{order}")
    await send_receipt.options(idempotency_key=f"order:{order}").enqueue(order)
    return f"{cents / 100:.2f}"


@worker(queue="mail")
async def send_receipt(order: int) -> None:
    outbox.append(f"receipt for order {order}")


@worker(queue="mail")
async def ask_for_review(order: int) -> None:
    outbox.append(f"how do you like order {order}?")
