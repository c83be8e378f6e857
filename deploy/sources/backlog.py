"""How many pictures of a live stream wait behind the one that has just come."""

from __future__ import annotations


class Backlog:
    """Tells the pictures that only waited, after a stall or while we were slow, from the one that is new.

    One picture comes an interval. When more time than that went by since the last one, as many are waiting; those come
    at once, and each makes the queue one shorter. A picture that had to be waited for is new, whatever was reckoned.
    One that comes late may have others behind it, after a stall; a second one in a row has not: the stream is slower
    than it says, as cameras are in the dark, or than its first two pictures were apart.

    Args:
        interval_s: Between pictures as the stream says; 0 where it does not, and it is learned either way.
    """

    def __init__(self, interval_s: float = 0.0) -> None:
        self._interval = interval_s
        self._last: float | None = None
        self._behind = 0.0
        self._was_late = False

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
        is_late = is_new and gap >= 1.5 * self._interval
        was_late, self._was_late = self._was_late, is_late
        is_slow = is_late and was_late
        if is_slow or (is_new and not is_late):
            self._behind = 0.0
        if is_slow or (self._behind < 1 and gap < 4 * self._interval):
            self._interval += 0.05 * (min(gap, 4 * self._interval) - self._interval)
        return not is_new and self._behind >= 1
