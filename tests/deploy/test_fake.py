from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from deploy.backends.fake import FakeSession
from deploy.session import class_map
from lfd.errors import ModelError
from lfd.spec import ModelSpec


def test_classes_follow_the_brightness(spec: ModelSpec) -> None:
    image = np.zeros((24, 32, 3), np.uint8)
    image[:8], image[8:16], image[16:] = 0, 128, 255
    with FakeSession(spec) as session:
        classes = class_map(session, image)
    assert classes.dtype == np.uint8 and classes.shape == (24, 32)
    assert (classes[:8] == 0).all() and (classes[8:16] == 1).all() and (classes[16:] == 2).all()


def test_logits_say_the_same(spec: ModelSpec) -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    logits = FakeSession(replace(spec, output="logits"))
    assert logits.run(image[None]).shape == (1, 3, 24, 32)
    np.testing.assert_array_equal(class_map(logits, image), class_map(FakeSession(spec), image))


def test_scripted_delays_and_rule(spec: ModelSpec) -> None:
    session = FakeSession(spec, delay_s=[0.05, 0.0], rule=lambda image: np.full(image.shape[:2], 2, np.uint8))
    begin = time.perf_counter()
    assert session.run(np.zeros((2, 24, 32, 3), np.uint8)).tolist() == np.full((2, 24, 32), 2).tolist()
    assert time.perf_counter() - begin >= 0.05
    session.run(np.zeros((1, 24, 32, 3), np.uint8))
    assert session.calls == 2


def test_a_batch_that_does_not_fit(spec: ModelSpec) -> None:
    session = FakeSession(spec)
    with pytest.raises(ModelError, match=r"takes uint8 \(B, \(24, 32, 3\)\)"):
        session.run(np.zeros((1, 3, 24, 32), np.uint8))
    session.close()
    with pytest.raises(ModelError):
        session.run(np.zeros((1, 24, 32, 3), np.uint8))


def test_a_class_that_the_spec_does_not_name_is_refused(spec: ModelSpec) -> None:
    session = FakeSession(spec, rule=lambda image: np.full(image.shape[:2], 3, np.uint8))
    with pytest.raises(ModelError, match="class 3, but its ModelSpec names 3 classes"):
        class_map(session, np.zeros((24, 32, 3), np.uint8))


@pytest.mark.parametrize(("batch", "fits"), [(None, (1, 2, 5)), (2, (2,))])
def test_how_many_frames_a_run_takes(spec: ModelSpec, batch: int | None, fits: tuple[int, ...]) -> None:
    session = FakeSession(spec, batch=batch)
    assert session.batch == batch
    for count in (1, 2, 5):
        frames = np.zeros((count, 24, 32, 3), np.uint8)
        if count in fits:
            assert session.run(frames).shape == (count, 24, 32)
        else:
            with pytest.raises(ModelError, match=rf"takes uint8 \({batch}, "):
                session.run(frames)
