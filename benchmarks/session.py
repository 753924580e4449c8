"""What does a session add to a batch? Both ends in one process, nothing lost, no transport.

Question: how many microseconds does a batch cost with a session, beyond what it costs without one?

    python benchmarks/session.py
"""

import statistics
import time

from dagsched.config import Config
from dagsched.protocol.session import Session

COUNT = 20_000
ROUNDS = 7


def plain_s() -> float:
    received: list[int] = []
    start = time.perf_counter()
    for number in range(COUNT):
        for batch in [("stamp", [number])]:
            received += batch[1]
    return time.perf_counter() - start


def session_s() -> float:
    config = Config()
    a = Session(1, lambda stamp, content: (stamp, content), config)
    b = Session(2, lambda stamp, content: (stamp, content), config)
    received = []
    start = time.perf_counter()
    for number in range(COUNT):
        a.send(number, 0.0)
        for stamp, content in a.take_batches(0.0):
            received += b.receive(stamp, content, 0.0)
        for stamp, content in b.take_batches(0.0):
            a.receive(stamp, content, 0.0)
    seconds = time.perf_counter() - start
    if received != list(range(COUNT)) or a.resent_count:
        raise SystemExit("something was lost")
    return seconds


def main() -> None:
    each = sorted((session_s() - plain_s()) / COUNT * 1e6 for _ in range(ROUNDS))
    median = statistics.median(each)
    print(f"{median:.2f} us a batch, both ends ({each[0]:.2f} .. {each[-1]:.2f})")


main()
