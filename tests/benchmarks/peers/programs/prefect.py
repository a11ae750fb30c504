"""Prefect: a flow with mapped tasks, by its threads, over a server of its own on SQLite."""

import os
import sys
import time

sys.path.pop(0)  # this file's own directory, where it has the name of the library
os.environ |= {
    "PREFECT_HOME": os.environ["PEER_DIRECTORY"],
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}

from prefect import flow, task


@task
def work(n: int) -> int:
    return n


@task
def join(results: list[int]) -> float:
    return time.monotonic()


@flow
def fan(width: int) -> float:
    return join.submit(work.map(range(width))).result()


@flow
def chain(length: int) -> float:
    before = 0
    for n in range(length):
        before = work.submit(n, wait_for=[before] if n else None)
    before.result()
    return time.monotonic()


def main() -> None:
    kind, _, size = sys.argv[1].partition("-")
    shape = {"fan": fan, "chain": chain}[kind]
    shape(5)
    began = time.monotonic()
    print(shape(int(size)) - began)


main()
