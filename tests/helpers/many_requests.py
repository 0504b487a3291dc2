"""Requests of many threads to one Segmenter, for processes that are spawned."""

import threading
from multiprocessing.connection import Connection

import numpy as np

from ssnet_mm.deploy import Segmenter

THREADS, REQUESTS = 16, 500


def images() -> list[np.ndarray]:
    """Of eight sizes, so that threads disturb each other where they can."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (32 + 4 * i, 48, 3), dtype=np.uint8) for i in range(8)]


def serve(arguments: tuple, expected: list[np.ndarray], connection: Connection) -> None:
    """Answer all requests in a Segmenter of this process' own; tell how many answers differ."""
    segment = Segmenter(*arguments, threads=2)
    given, wrong = images(), []

    def ask(thread: int) -> None:
        for i in range(REQUESTS):
            which = (thread + i) % len(given)
            if not np.array_equal(segment(given[which]), expected[which]):
                wrong.append(which)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    connection.send(len(wrong))
