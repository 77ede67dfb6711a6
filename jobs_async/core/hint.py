"""What a store may tell a process before it asks by itself."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class Hint(Struct, frozen=True):
    """Something may have happened elsewhere: there is "work" in a queue, a "cancel" for a node, a word on a "queue".

    Or "anything": whoever gives hints could not for a while, and says so. Never needed for correctness: hints may come
    late, twice, or not at all.
    """

    kind: Literal["work", "cancel", "queue", "anything"]
    name: str = ""
