import itertools
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from securefed import PrivacyPolicy, secure_round
from securefed.engines import parallel
from securefed.engines.parallel import ParallelMasks
from securefed.errors import ConfigError, RemoteProtocolError, SecureFedError
from securefed.secagg.carriers import apply_masks

SHARED = Path("/dev/shm")


def masks_of(count):
    return [(os.urandom(32), index % 3 == 0) for index in range(count)]


def left_behind():
    """Shared memory of this process that has a name."""
    return [path.name for path in SHARED.glob(f"*{os.getpid()}*")] if SHARED.is_dir() else []


@pytest.fixture(autouse=True)
def nothing_stays():
    yield
    assert multiprocessing.active_children() == []
    assert left_behind() == []


@pytest.mark.parametrize(
    ("workers", "length", "count"),
    [(1, 1000, 9), (2, 1, 5), (2, 65_537, 700), (3, 100_003, 40), (3, 17, 2), (2, 9, 0)],
)
def test_the_result_is_that_of_one_core(workers, length, count):
    masks = masks_of(count)
    vector = np.random.default_rng(0).integers(0, 2**32, length, dtype=np.uint32)
    wanted = vector.copy()
    apply_masks(wanted, masks)
    ParallelMasks(workers, serial_below=0)(vector, iter(masks))
    np.testing.assert_array_equal(vector, wanted)


def test_an_empty_vector_needs_nobody():
    vector = np.zeros(0, dtype=np.uint32)
    ParallelMasks(2, serial_below=0)(vector, masks_of(3))
    assert vector.size == 0


def test_little_work_stays_in_this_process(monkeypatch):
    def refuse(*args):
        raise AssertionError("processes were started")

    monkeypatch.setattr(parallel, "_crew", refuse)
    masks = masks_of(99)
    vector, wanted = np.zeros((2, 100), dtype=np.uint32)
    apply_masks(wanted, masks)
    ParallelMasks(2, serial_below=100 * 100)(vector, iter(masks))
    np.testing.assert_array_equal(vector, wanted)
    with pytest.raises(AssertionError, match="were started"):
        ParallelMasks(2, serial_below=100 * 99)(vector, iter(masks))


def test_what_the_masks_raise_ends_all_and_changes_nothing():
    def failing():
        yield from masks_of(5000)
        assert multiprocessing.active_children() != []
        raise RemoteProtocolError("a secret does not match")

    vector = np.arange(1000, dtype=np.uint32)
    with pytest.raises(RemoteProtocolError, match="does not match"):
        ParallelMasks(2, serial_below=0)(vector, failing())
    np.testing.assert_array_equal(vector, np.arange(1000))


def test_a_process_that_is_killed_ends_the_removal_by_name():
    def murderous():
        killed = False
        for mask in masks_of(20_000):
            for child in [] if killed else multiprocessing.active_children()[:1]:
                os.kill(child.pid, signal.SIGKILL)
                killed = True
            yield mask

    vector = np.arange(1000, dtype=np.uint32)
    with pytest.raises(SecureFedError, match="exit code -9"):
        ParallelMasks(2, serial_below=0)(vector, murderous())
    np.testing.assert_array_equal(vector, np.arange(1000))


def test_a_short_key_is_refused_as_on_one_core():
    for remove in (apply_masks, ParallelMasks(2, serial_below=0)):
        with pytest.raises(ConfigError, match="key has 31 bytes"):
            remove(np.zeros(4, dtype=np.uint32), [(bytes(32), False), (bytes(31), True)])


@pytest.mark.parametrize(
    "vector",
    [np.zeros(8), np.zeros((2, 4), dtype=np.uint32), np.zeros(8, dtype=np.uint32)[::2]],
    ids=["float64", "two axes", "every other"],
)
def test_a_vector_that_is_no_ring_vector_is_refused(vector):
    with pytest.raises(ConfigError, match="vector"):
        ParallelMasks(2, serial_below=0)(vector, masks_of(3))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"workers": 0}, "workers = 0"), ({"workers": 1, "serial_below": -1}, "serial_below = -1")],
)
def test_arguments_out_of_range_are_refused(arguments, named):
    with pytest.raises(ConfigError, match=named):
        ParallelMasks(**arguments)


def test_a_round_with_dropouts_on_several_cores():
    rng = np.random.default_rng(1)
    updates = {f"c{index}": rng.normal(size=301) for index in range(6)}
    updates = {name: update / np.linalg.norm(update) for name, update in updates.items()}
    result = secure_round(
        updates,
        privacy=PrivacyPolicy(clip_norm=1.0, mechanism="none"),
        drop={"c1": "masked_input"},
        remove_masks=ParallelMasks(2, serial_below=0),
    )
    assert result.survivors == ("c0", "c2", "c3", "c4", "c5")
    wanted = sum(update for name, update in updates.items() if name != "c1")
    np.testing.assert_allclose(result.sum, wanted, atol=1e-3)


def test_batches_fit_a_pipe_and_lose_nothing():
    for length, count in itertools.product((1, 10**6, 10**9), (1, 247, 249, 1000)):
        masks = masks_of(count)
        batches = list(parallel._batches(masks, length))
        assert all(0 < len(batch) <= 8192 for batch in batches)
        whole = b"".join(batches)
        assert whole == b"".join(bytes([subtract]) + key for key, subtract in masks)
