"""A process that cleans up after nothing, to see that this is noticed."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from tests.chaos.fleet import Fleet, Place
from tests.chaos.scenario import Report, main

_kept: list[Any] = []


def careless(place: Place) -> Report:
    """All that it leaves is found."""
    with Fleet(place) as fleet:
        process = fleet.start(live)
        fleet.until("it has ended", lambda: not process.is_alive())
    return {"left": place.left_behind(), "violations": []}


async def live(place: Place) -> None:
    thread = threading.Thread(target=threading.Event().wait, daemon=True)
    thread.start()
    _kept.extend([asyncio.create_task(asyncio.sleep(60)), thread, (place.folder / "file").open("w")])


if __name__ == "__main__":
    main(careless)
