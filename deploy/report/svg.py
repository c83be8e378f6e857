"""Drawing in SVG: scales, marks and a picture that a screen reader can name. Colours come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH = 440
"""Of every chart, in its own units: on a telephone, text of 13 units is still 10 pixels high."""
LETTER = 7.3
"""Width of a letter, on average, in a text of 13 units."""


@dataclass
class Svg:
    """A picture being drawn; coordinates are rounded to a tenth, which keeps the page small."""

    height: float
    title: str
    description: str
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> None:
        """Write a line; `anchor` is start, middle or end."""
        style = f' class="{kind}"' if kind else ""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(text)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str = "axis") -> None:
        """Draw a straight line."""
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>')

    def rect(self, x: float, y: float, width: float, height: float, color: str, kind: str = "", tip: str = "") -> None:
        """Fill a rectangle; `tip` is shown under the pointer."""
        style = f' class="{kind}"' if kind else ""
        place = f'x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{max(0.0, height):.1f}"'
        self.parts.append(f'<rect {place} fill="var({color})"{style}>{_tip(tip)}</rect>')

    def dot(self, x: float, y: float, color: str, tip: str = "", diamond: bool = False, radius: float = 6) -> None:
        """Draw a point: a circle, or a diamond for what must be told apart without colour."""
        if diamond:
            corners = (
                f"{x:.1f},{y - radius:.1f} {x + radius:.1f},{y:.1f} {x:.1f},{y + radius:.1f} {x - radius:.1f},{y:.1f}"
            )
            self.parts.append(f'<polygon points="{corners}" fill="var({color})">{_tip(tip)}</polygon>')
        else:
            place = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"'
            self.parts.append(f'<circle {place} fill="var({color})">{_tip(tip)}</circle>')

    def path(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """Draw lines from point to point."""
        where = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{where}" class="{kind}"/>')

    def render(self) -> str:
        """Return the element."""
        name = escape(f"{self.title}. {self.description}")
        return (
            f'<svg viewBox="0 0 {WIDTH} {self.height:.0f}" role="img" aria-label="{name}">{"".join(self.parts)}</svg>'
        )


def _tip(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


@dataclass(frozen=True)
class Scale:
    """From values to places on an axis.

    Attributes:
        low: Value at the begin.
        high: Value at the end, larger than `low`.
        begin: Place of `low`.
        end: Place of `high`.
        log: Equal ratios take equal room.
    """

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)

    @classmethod
    def over(
        cls,
        values: Sequence[float],
        begin: float,
        end: float,
        zero: bool = False,
        log: bool = False,
        least: float = 0.0,
    ) -> Scale:
        """Return a scale with some room around the values; `zero` begins it there, `least` is how much it spans."""
        low, high = min(values), max(values)
        if (wider := (least - (high - low)) / 2) > 0:
            low, high = low - wider, high + wider
        if log:
            room = max(1.08, (high / low) ** 0.06)
            return cls(low / room, high * room, begin, end, log=True)
        margin = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
        return cls(0.0 if zero else low - margin, high + margin, begin, end)

    def ticks(self, wanted: int = 4) -> list[float]:
        """Return round values on the axis: 1, 2 and 5 times a power of ten, or of these steps."""
        if self.log:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for factors in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
                found = [f * 10.0**e for e in exponents for f in factors if self.low <= f * 10.0**e <= self.high]
                if len(found) >= 3:
                    return found[:: math.ceil(len(found) / 6)]
        rough = (self.high - self.low) / wanted
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * f for f in (1, 2, 5, 10) if power * f >= rough)
        return [step * i for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def axis_x(svg: Svg, scale: Scale, top: float, bottom: float, unit: str) -> None:
    """Draw a horizontal axis with its grid."""
    for tick in scale.ticks():
        svg.line(scale(tick), top, scale(tick), bottom)
        svg.text(scale(tick), bottom + 16, f"{tick:g}", "middle", "soft")
    svg.text(scale.end, bottom + 32, unit, "end", "soft")


def place_labels(
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    others: Sequence[tuple[float, float, float, float]] = (),
) -> list[tuple[float, float]]:
    """Return where each point's name begins: above or below it, to the right or left, where there is room for it.

    Args:
        points: Of the picture.
        names: Theirs.
        others: Boxes (left, top, right, bottom) of what else is written there.
    """
    taken = [*others, *((x - 7, y - 7, x + 7, y + 7) for x, y in points)]
    found = []
    for (x, y), name in zip(points, names, strict=True):
        width = LETTER * len(name)
        bases = (y - 11, y + 21, y - 27, y + 37)
        corners = [(left, base) for base in bases for left in (x - 4, x + 4 - width, x - width / 2)]
        inside = [(left, base) for left, base in corners if 0 <= left <= WIDTH - width] or corners[-1:]
        free = [c for c in inside if not any(_overlap((c[0], c[1] - 11, c[0] + width, c[1] + 3), box) for box in taken)]
        left, base = (free or inside)[0]
        taken.append((left, base - 11, left + width, base + 3))
        found.append((left, base))
    return found


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
