"""DBOS: a workflow that enqueues others, on PostgreSQL, in one process with its threads."""

import os
import sys
import time

sys.path.pop(0)  # this file's own directory, where it has the name of the library

from dbos import DBOS

QUEUE = "work"
#: Its default is a second. Often is quick for a chain, and gets in the way of a fan.
POLL_SECONDS = 0.01 if "chain" in sys.argv[1] else 0.1


@DBOS.workflow()
def work(n: int) -> float:
    return time.monotonic()


@DBOS.workflow()
def fan(width: int) -> float:
    handles = [DBOS.enqueue_workflow(QUEUE, work, n) for n in range(width)]
    for handle in handles:
        handle.get_result(polling_interval_sec=POLL_SECONDS)
    return time.monotonic()


@DBOS.workflow()
def chain(length: int) -> float:
    last = 0.0
    for n in range(length):
        last = DBOS.enqueue_workflow(QUEUE, work, n).get_result(polling_interval_sec=POLL_SECONDS)
    return last


def main() -> None:
    kind, _, size = sys.argv[1].partition("-")
    DBOS(config={"name": "bench", "system_database_url": os.environ["PEER_DATABASE"], "log_level": "ERROR"})
    DBOS.launch()
    DBOS.register_queue(QUEUE, polling_interval_sec=POLL_SECONDS)
    shape = {"fan": fan, "chain": chain}[kind]
    shape(5)
    began = time.monotonic()
    print(shape(int(size)) - began)
    DBOS.destroy()


main()
