"""How many jobs a queue may run at once, and how many more it could right now."""

from __future__ import annotations


class Slots:
    """A semaphore whose free count can be read, for that is how many jobs to claim, and whose size can change."""

    __slots__ = ("limit", "taken")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0

    @property
    def free(self) -> int:
        """Never negative: after `limit` was lowered, what runs may finish."""
        return max(0, self.limit - self.taken)

    def take(self) -> None:
        self.taken += 1

    def give_back(self, count: int = 1) -> None:
        self.taken -= count
