"""How many pictures of a live stream wait behind the one that has just come."""

from __future__ import annotations


class Backlog:
    """Tells the pictures that only waited, after a stall or while we were slow, from the one that is new.

    One picture comes an interval. When more time than that went by since the last one, as many are waiting; those come
    at once, and each makes the queue one shorter. A picture that had to be waited for is new, whatever was reckoned.

    Args:
        interval_s: Between pictures as the stream says; 0 where it does not, and it is learned either way.
    """

    def __init__(self, interval_s: float = 0.0) -> None:
        self._interval = interval_s
        self._last: float | None = None
        self._behind = 0.0

    def is_old(self, asked: float, came: float) -> bool:
        """Take in a picture's times, and tell whether newer ones wait behind it.

        Args:
            asked: When it was asked for, s.
            came: When it was there.
        """
        last, self._last = self._last, came
        if last is None:
            return False
        gap, waited = came - last, came - asked
        if not self._interval:
            self._interval = gap
            return False
        self._behind = max(0.0, self._behind + gap / self._interval - 1)
        is_new = waited >= self._interval / 2
        if is_new and gap < 1.5 * self._interval:
            self._behind = 0.0
        if self._behind < 1 and gap < 4 * self._interval:
            self._interval += 0.05 * (gap - self._interval)
        return not is_new and self._behind >= 1
