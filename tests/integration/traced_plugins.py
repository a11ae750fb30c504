"""What worker processes declare for tests of traces: each process writes its spans to a file of its own."""

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.contrib.otel import instrument


class FileExporter(SpanExporter):
    """Appends each span to a file, as JSON."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / f"{os.getpid()}.jsonl").open("a") as file:
            file.writelines(span.to_json(indent=None) + "\n" for span in spans)
        return SpanExportResult.SUCCESS


def read_spans(directory: Path) -> list[dict[str, Any]]:
    """What every process has written; ``pid`` says which did."""
    return [
        {**json.loads(line), "pid": int(path.stem)}
        for path in directory.glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]


def declare_traced(dag: Dagabaaz) -> None:
    """Plugins that trace what they do, over a provider of this process's own."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(FileExporter(Path(dag.app.conf.dagabaaz_files_dir) / "spans")))
    instrument(dag, provider)
    tracer = provider.get_tracer("plugins")
    dag.app.tracer_provider = provider

    @dag.plugin
    def words() -> list[str]:
        with tracer.start_as_current_span("read"):
            return ["tea", "cake"]

    @dag.plugin(bind=True, max_retries=1)
    def weigh(self: Any, word: str) -> int:
        with tracer.start_as_current_span(f"weigh {word}"):
            if word == "cake" and not self.request.retries:
                raise self.retry(countdown=0)
            return len(word)

    @dag.plugin(fan_mode="aggregate")
    async def add_up(artifacts: list[dict[str, Any]]) -> int:
        async def add() -> int:
            with tracer.start_as_current_span("add"):
                return sum(artifact["metadata"]["value"] for artifact in artifacts)

        return await asyncio.create_task(add())

    @dag.plugin
    def mortal() -> str:
        marker = Path(dag.app.conf.dagabaaz_files_dir) / "died"
        with tracer.start_as_current_span("before the end"):
            trace.get_current_span().add_event("alive")
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), 9)
        return "survived"
