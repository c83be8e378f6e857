"""What each scenario found: its raw samples, and what they say. Names as in MLPerf's LoadGen."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.timing import Percentiles, Samples, Timing


def _check_rounds(rounds: Sequence[Samples]) -> None:
    if not rounds or not all(samples.model_ms for samples in rounds):
        raise ValueError("a scenario without samples; expected one at least in each of its rounds")
    if min(ms for samples in rounds for ms in samples.model_ms) <= 0:
        raise ValueError("a model that took 0 ms; expected what a clock measured")


@dataclass(frozen=True)
class WarmUp:
    """What was run and thrown away before the clock counted.

    Attributes:
        thrown_away_ms: End-to-end durations of the warm-up.
        settled: Whether the rolling median came to rest before the time was up.
    """

    thrown_away_ms: tuple[float, ...]
    settled: bool


@dataclass(frozen=True)
class SingleStream:
    """Scenario `single`: raw samples by round, and what they say."""

    warm_up: WarmUp
    rounds: tuple[Samples, ...]
    model_alone: Timing
    end_to_end: Timing

    def __post_init__(self) -> None:
        _check_rounds(self.rounds)

    @classmethod
    def of(cls, warm_up: WarmUp, rounds: Sequence[Samples]) -> SingleStream:
        """Summarise the rounds; the inference thrown away at the start of each is not among them."""
        alone = Timing.of([ms for samples in rounds for ms in samples.model_ms])
        whole = Timing.of([ms for samples in rounds for ms in samples.end_to_end_ms])
        return cls(warm_up, tuple(rounds), alone, whole)


@dataclass(frozen=True)
class Offline:
    """Scenario `offline`: batches one after another, as fast as they go.

    Attributes:
        batch: Frames a run.
        rounds: Raw samples by round; each is a batch.
        model_alone: Of batches; its `images_per_s` counts pictures.
        end_to_end: Likewise.
    """

    batch: int
    rounds: tuple[Samples, ...]
    model_alone: Timing
    end_to_end: Timing

    def __post_init__(self) -> None:
        _check_rounds(self.rounds)

    @classmethod
    def of(cls, batch: int, rounds: Sequence[Samples]) -> Offline:
        """Summarise the rounds."""
        alone = Timing.of([ms for samples in rounds for ms in samples.model_ms], batch)
        whole = Timing.of([ms for samples in rounds for ms in samples.end_to_end_ms], batch)
        return cls(batch, tuple(rounds), alone, whole)


def queue(services_ms: Sequence[float], period_ms: float) -> list[float]:
    """Return latencies from arrival, one every `period_ms`, served one after another in order.

    Lindley's recursion (The theory of queues with a single server, 1952): what waits for its turn is counted.
    """
    latencies = []
    waiting = 0.0
    for service in services_ms:
        latencies.append(waiting + service)
        waiting = max(0.0, latencies[-1] - period_ms)
    return latencies


@dataclass(frozen=True)
class Stream:
    """Scenario `stream@FPS`: frames arrive by the clock, whether or not the model is ready for them.

    Latency counts from the scheduled arrival, so that a stall is charged to every frame that it delays. A loop that
    asks for the next frame when it has done the last hides them (Tene's "coordinated omission").

    Attributes:
        fps: Arrivals a second.
        samples: Raw durations of the stages.
        wait_ms: From each scheduled arrival to the frame's turn.
        unserved: Frames that had arrived and were still waiting when the time was up.
        model_alone: Latencies of the queue that the same arrivals make before the model alone; None where it does not
            keep up, since they would tell of the length of the run.
        end_to_end: Latencies as measured; likewise.
        missed: Frames that were not done when the next arrived, the unserved among them.
        load: Share of the period that serving a frame takes, on average; from 1 on the queue grows for ever.
        images_per_s: The pace at which frames are done, from the first to the last.
    """

    fps: float
    samples: Samples
    wait_ms: tuple[float, ...]
    unserved: int
    model_alone: Percentiles | None
    end_to_end: Percentiles | None
    missed: int
    load: float
    images_per_s: float

    def __post_init__(self) -> None:
        if len(self.wait_ms) != len(self.samples.model_ms):
            raise ValueError("waits and samples of different number; expected one of each a frame")
        if not self.wait_ms or min(self.wait_ms) < 0:
            raise ValueError("a stream without frames, or with a wait below 0 ms; expected what a clock measured")

    @classmethod
    def of(cls, fps: float, samples: Samples, wait_ms: Sequence[float], unserved: int) -> Stream:
        """Summarise the frames in the order of their arrival; at least one."""
        period_ms, services = 1e3 / fps, samples.end_to_end_ms
        latencies = [wait + service for wait, service in zip(wait_ms, services, strict=True)]
        between = len(latencies) - 1
        load = sum(services) / len(services) / period_ms
        bounded = load < 1 and not unserved
        return cls(
            fps=fps,
            samples=samples,
            wait_ms=tuple(wait_ms),
            unserved=unserved,
            model_alone=Percentiles.of(queue(samples.model_ms, period_ms)) if bounded else None,
            end_to_end=Percentiles.of(latencies) if bounded else None,
            missed=unserved + sum(latency > period_ms for latency in latencies),
            load=load,
            images_per_s=1e3
            * max(1, between)
            / (between * period_ms + latencies[-1] - (latencies[0] if between else 0)),
        )

    @property
    def late_ms(self) -> float | None:
        """Median wait of the frames whose turn it was when they arrived: how late the clock woke up.

        None where there was no such frame.
        """
        period_ms = 1e3 / self.fps
        done = [wait + service for wait, service in zip(self.wait_ms, self.samples.end_to_end_ms, strict=True)]
        late = [wait for wait, before in zip(self.wait_ms[1:], done, strict=False) if before < period_ms]
        return statistics.median(late) if late else None

    @property
    def keeps_up(self) -> bool:
        """Whether the queue stays bounded; else latencies tell of the length of the run, not of the model."""
        return self.load < 1 and self.unserved == 0
