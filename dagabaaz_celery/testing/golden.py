"""What a pipeline decides, kept in a file that people review: which nodes ran, how often, and on what."""

import difflib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.models import DagNode, TaskArtifact
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.testing.inline import run_inline
from dagabaaz_celery.testing.inline_run import InlineRun

#: Set to 1 to have files written in place of being compared; pytest's option ``--dagabaaz-update-golden`` does.
UPDATE_VARIABLE = "DAGABAAZ_UPDATE_GOLDEN"
_HOW_TO_UPDATE = f"If that is what you want, run the tests with --dagabaaz-update-golden, or {UPDATE_VARIABLE}=1."

#: What roots produce, or what nodes do, by slug.
Case = Sequence[Any] | Mapping[str, Any]


def assert_golden(
    pipeline: Pipeline,
    cases: Mapping[str, Case],
    path: str | Path,
    *,
    dag: Dagabaaz | None = None,
    plugins: Mapping[str, Any] | None = None,
) -> None:
    """Compare what becomes of each case, node by node, with what a JSON file says; AssertionError with the difference.

    A case is a list of what each root produces, or has for slugs what their nodes produce or do, as ``nodes`` of
    ``run_inline``. Any other node hands on what it got, as artifacts of its own. Of ``dag`` and ``plugins`` only what
    decides the routing is taken: fan modes, and which plugins are passthrough.
    """
    __tracebackhide__ = True  # pytest shows the line that called
    found = {
        "pipeline": pipeline.name,
        "cases": {name: _describe(_run(pipeline, case, dag, plugins or {})) for name, case in cases.items()},
    }
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    file = Path(path)
    if os.environ.get(UPDATE_VARIABLE, "0") not in ("", "0"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return
    if not file.exists():
        raise AssertionError(
            f"There is no file {file} that says what pipeline {pipeline.name!r} decides. {_HOW_TO_UPDATE}"
        )
    kept = file.read_text(encoding="utf-8")
    if kept != text:
        lines = difflib.unified_diff(
            kept.splitlines(), text.splitlines(), str(file), "what it decides now", lineterm=""
        )
        difference = "\n".join(lines)
        raise AssertionError(f"Pipeline {pipeline.name!r} decides otherwise. {_HOW_TO_UPDATE}\n{difference}")


def _run(pipeline: Pipeline, case: Case, dag: Dagabaaz | None, plugins: Mapping[str, Any]) -> InlineRun:
    by_slug = case if isinstance(case, Mapping) else {}
    made = {} if isinstance(case, Mapping) else {n.slug: case for n in pipeline.nodes if not n.depends_on}
    nodes = {node.slug: by_slug.get(node.slug, made.get(node.slug, _hand_on(node))) for node in pipeline.nodes}
    # All bodies are in nodes: by their names plugins only say how they are routed.
    names = {name for node in pipeline.nodes for name in (node.plugin, node.rollback) if name}
    return run_inline(
        pipeline,
        _make_input(pipeline, dag),
        plugins={**dict.fromkeys(names), **plugins},
        nodes=nodes,
        dag=dag,
        secrets=lambda name: name,
    )


def _make_input(pipeline: Pipeline, dag: Dagabaaz | None) -> dict[str, Any]:
    """An input that the pipeline takes: for every field that it asks for, its name."""
    fields = pipeline.input_schema(dag.find_plugin if dag is not None else lambda name: None)
    return {field.name: field.name for field in fields if field.required}


def _hand_on(node: DagNode) -> Callable[..., Any]:
    def hand_on(**task_input: Any) -> list[TaskArtifact]:
        entries = task_input.get("artifacts")
        if isinstance(entries, list):
            return [_to_artifact(entry) for entry in entries]
        return [_to_artifact(task_input)]

    return hand_on


def _to_artifact(entry: Mapping[str, Any]) -> TaskArtifact:
    known = {key: entry.get(key) for key in ("file_name", "file_size", "mime_type")}
    rest = {key: value for key, value in entry.items() if key not in (*known, "file_path", "metadata")}
    return TaskArtifact(**known, metadata={**rest, **(entry.get("metadata") or {})})


def _describe(run: InlineRun) -> dict[str, Any]:
    nodes = {slug: _describe_node(run, slug, status) for slug, status in run.nodes.items()}
    return {"run": run.status.value, "nodes": nodes}


def _describe_node(run: InlineRun, slug: str, status: str) -> Any:
    """One line, such as "completed, 3 tasks"; a node that did not run has its status alone."""
    began = [task for task in run.tasks(slug) if not task.rollback and task.started_at is not None]
    if not began:
        return status
    return f"{status}, {len(began)} {'task' if len(began) == 1 else 'tasks'}"
