"""Plugins of a wide run that write down each of their bodies, by task, to a file that the run's input names."""

import os
from pathlib import Path

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.context import PluginContext


def declare_wide(dag: Dagabaaz) -> None:
    """A source of numbers, work on each, and an end; a file says which number cannot be worked on."""

    def note(journal: str, context: PluginContext) -> None:
        line = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(line, f"{context.slug} {context.task_id}\n".encode())
        os.close(line)

    @dag.plugin
    def numbers(journal: str, count: int, context: PluginContext) -> list[dict]:
        note(journal, context)
        return [{"n": n, "journal": journal} for n in range(count)]

    @dag.plugin
    def work(n: int, journal: str, context: PluginContext) -> dict:
        note(journal, context)
        bad = Path(f"{journal}.bad")
        if bad.exists() and int(bad.read_text()) == n:
            raise ValueError(f"{n} cannot be worked on")
        return {"n": n, "journal": journal}

    @dag.plugin
    def end(artifacts: list[dict], context: PluginContext) -> int:
        note(artifacts[0]["metadata"]["journal"], context)
        return sum(artifact["metadata"]["n"] for artifact in artifacts)
