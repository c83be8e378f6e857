"""Who moves how in a drive: cars, cyclists and people on foot.

Where each of them is depends on the drive's seed and the time alone, so any frame can be made
without the frames before it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from lfd.data.street_cars import BODIES, Car
from lfd.data.street_chance import CLOTHES, PAINTS, SKINS, TROUSERS, person, rng
from lfd.data.street_ground import BLOCK_M, Ground
from lfd.data.street_people import Cyclist
from lfd.data.street_scene import Thing
from lfd.data.street_view import FAR


class Traffic:
    """All that moves in one drive.

    Args:
        seed: The drive's.
        hand: The side of the road that is driven on, -1 or 1.
        ground: The road.
        busy: How much moves, from 0 to 1.
        r: Chooses the streams of traffic.
    """

    def __init__(self, seed: int, hand: int, ground: Ground, busy: float, r: random.Random) -> None:
        self.seed, self.hand, self.ground, self.busy = seed, hand, ground, busy
        # Streams of traffic: name, speed m/s, mean spacing m, share of places taken.
        gap = 60 - 35 * busy
        self.streams = (
            ("oncoming", -r.uniform(8, 12), gap, 0.75),
            ("bike", r.uniform(4.0, 6.0), 65.0, 0.6),
            ("bike_oncoming", -r.uniform(4.0, 6.0), 80.0, 0.5),
            ("walk_left", r.choice((-1, 1)) * r.uniform(1.1, 1.6), 9.0, 0.25 + 0.5 * busy),
            ("walk_right", r.choice((-1, 1)) * r.uniform(1.1, 1.6), 9.0, 0.25 + 0.5 * busy),
        )

    def things(self, t: float, here: float) -> Iterator[Thing]:
        """Yield all that moves ahead of `here`, m along the road, at time `t`, s."""
        g = self.ground
        lane = g.half - (2.0 if g.parking else 0.0)
        for name, speed, spacing, share in self.streams:
            first = math.floor((here - speed * t) / spacing) - 1
            for k in range(first, first + int(FAR / spacing) + 3):
                r = rng(self.seed, name, k)
                if r.random() > share:
                    continue
                s = (k + r.uniform(0.0, 0.6)) * spacing + speed * t
                if not here + 0.5 < s < here + FAR:
                    continue
                phase = r.uniform(0, 6.283)
                if name == "oncoming":
                    body = r.choice((0, 0, 1, 1, 2, 3, 4, 5))
                    yield Car(s, -self.hand * lane * 0.5, -1, body, r.choice(PAINTS))
                elif name.startswith("bike"):
                    facing = 1 if speed > 0 else -1
                    lat = facing * self.hand * (lane - 0.45 + 0.1 * math.sin(1.3 * t + phase))
                    looks = (r.choice(CLOTHES), r.choice(TROUSERS), r.choice(SKINS), r.choice(PAINTS))
                    yield Cyclist(s, lat, facing, phase + 7.0 * t, *looks)
                else:
                    side = -1 if name == "walk_left" else 1
                    lat = side * (g.half + r.uniform(0.8, max(0.9, g.pavement - 0.4)))
                    yield person(r, s, lat, (0.0, math.copysign(1.0, speed)), phase + 7.5 * t)
        yield from self._ahead(t, here)
        yield from self._crossing(t, here)

    def _ahead(self, t: float, here: float) -> Iterator[Thing]:
        """Yield the cars that drive before us, now nearer, now farther."""
        r = rng(self.seed, "ahead")
        lane = self.hand * (self.ground.half - (2.0 if self.ground.parking else 0.0)) * 0.5
        gap = r.uniform(9, 55) if r.random() < 0.5 + 0.3 * self.busy else 70.0
        for _ in range(3):
            sway, pace, phase = r.uniform(0.1, 0.35) * gap * 0.5, r.uniform(0.2, 0.5), r.uniform(0, 6.28)
            body = r.choice((0, 0, 1, 2, 3, 4, 5))
            s = here + gap + sway * math.sin(pace * t + phase)
            yield Car(s, lane, 1, body, r.choice(PAINTS), math.cos(pace * t + phase) < -0.5)
            gap += BODIES[body].size[0] + r.uniform(8, 40)

    def _crossing(self, t: float, here: float) -> Iterator[Thing]:
        """Yield people who cross the road and back, in front of us sooner or later."""
        reach = self.ground.half + 1.5
        for block in range(int(here // BLOCK_M), int((here + 90) // BLOCK_M) + 1):
            r = rng(self.seed, "crossing", block)
            if r.random() > 0.3 + 0.4 * self.busy:
                continue
            s = block * BLOCK_M + r.uniform(69, 77)
            period = 2 * (2 * reach / 1.35 + 5.0)
            turn = (t + r.uniform(0, period)) % period
            back, walked = turn > period / 2, min(1.35 * (turn % (period / 2)), 2 * reach)
            lat = reach - walked if back else walked - reach
            still = walked >= 2 * reach
            heading = (0.0, 0.0) if still else ((-1.0 if back else 1.0), 0.0)
            if s > here + 1:
                yield person(r, s, lat, heading, 0.0 if still else 7.5 * t)
