"""The addresses added to Flower, behind its own authentication. They only read."""

import asyncio
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from flower.utils.tasks import get_task_by_id
from flower.views import BaseHandler
from flower.views.tasks import TaskView
from tornado import web
from tornado.template import Loader

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.constants import RunStatus
from dagabaaz_celery.contrib.flower.pages import RunPage, TaskQuery, find_place, read_list, read_run
from dagabaaz_celery.drawing import format_seconds, to_icon
from dagabaaz_celery.errors import DagabaazError, StoreUnavailable, UnknownNode, UnknownRun
from dagabaaz_celery.stores.sql.outages import DATABASE_ERRORS, describe_outage, is_outage

Answer = TypeVar("Answer")

_TEMPLATES = Path(__file__).parent / "templates"
#: Seconds between two looks of a page at a run that is not over.
POLL_SECONDS = 2
#: Threads of our own: a database that hangs must not take those that Flower asks its workers with.
_threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="dagabaaz-flower")
_parts = Loader(str(_TEMPLATES))


class _Pages(BaseHandler):  # type: ignore[misc]  # Flower ships no types
    """What the pages have in common."""

    async def ask(self, call: Callable[[Dagabaaz], Answer]) -> Answer:
        """Ask the store in a thread, as the loop that serves all pages must not wait.

        Raises DagabaazError, also for a database that is away.
        """
        return await asyncio.get_running_loop().run_in_executor(_threads, _call, self.capp, call)

    def query(self) -> dict[str, str]:
        """The last value of each argument in the URL, as it was written."""
        return {name: self.get_query_arguments(name)[-1] for name in self.request.query_arguments}

    def part(self, template: str, **names: Any) -> str:
        """A part of a page."""
        return (
            _parts.load(template)
            .generate(
                **names,
                icon=to_icon,
                took=_took,
                time=self._format_time,
                task_url=lambda task_id: self.reverse_url("task", task_id),
            )
            .decode()
        )

    def show(self, template: str, **names: Any) -> None:
        """A page of ours within Flower's frame."""
        # An absolute name: what our templates extend, Flower's loader finds in its own directory.
        self.render(str(_TEMPLATES / template), **names)

    def show_problem(self, error: DagabaazError, status: int) -> None:
        """A page that says what is wrong; for a page that asks in the background, only the words."""
        self.set_status(status)
        if "live" in self.request.query_arguments:
            self.write({"problem": error.message})
        else:
            self.show("problem.html", message=error.message, code=error.code, link=None)

    def _format_time(self, seconds: float | None) -> str:
        if seconds is None:
            return "—"
        return datetime.fromtimestamp(seconds, tz=self.capp.timezone or UTC).strftime("%Y-%m-%d %H:%M:%S %Z")


class RunView(_Pages, TaskView):  # type: ignore[misc]
    """``/task/<id>``: a run's page for the id of a run, Flower's own for anything else.

    With ``live`` in the query it gives the parts of the page that change, as JSON.
    """

    @web.authenticated
    async def get(self, task_id: str) -> None:
        """Show what the id is of."""
        if get_task_by_id(self.application.events, task_id) is not None:
            super().get(task_id)
            return
        query = TaskQuery.read(self.query())
        try:
            page = await self.ask(lambda dag: read_run(dag, dag.run(task_id), query))
        except UnknownRun:
            await self._show_task(task_id)
        except UnknownNode as error:
            self.show_problem(error, 404)
        except DagabaazError as error:
            self.show_problem(error, 503)
        else:
            self._show_run(page)

    def _show_run(self, page: RunPage) -> None:
        parts = {
            "summary": self.part("summary.html", page=page),
            "graph": page.graph,
            "tasks": self.part("tasks.html", page=page),
        }
        if "live" in self.request.query_arguments:
            self.write({"over": page.is_over, "parts": parts})
            return
        self.show(
            "run.html", run=page.run, parts=parts, over=page.is_over, poll=POLL_SECONDS, list_url=self._list_url()
        )

    async def _show_task(self, task_id: str) -> None:
        """What Flower knows no task of: one that ran before it came, or none."""
        try:
            place = await self.ask(lambda dag: find_place(dag, str(uuid.UUID(task_id))))
        except DagabaazError as error:
            self.show_problem(error, 503)
            return
        if place is None:
            super().get(task_id)  # which says so
            return
        run_id, node = place
        self.set_status(404)
        self.show(
            "problem.html",
            message="Flower has seen nothing of this task: it keeps what workers sent since it was started, up to "
            f"--max-tasks. It is a task of node {node!r}; the run's page has its state.",
            code="",
            link=(self.reverse_url("task", run_id) + TaskQuery(node=node).url(), f"Run {run_id}"),
        )

    def _list_url(self) -> str:
        return str(self.reverse_url("dagabaaz-runs"))


class RunsView(_Pages):
    """``/dagabaaz``: the newest runs."""

    @web.authenticated
    async def get(self) -> None:
        """Show the runs that the query asks for."""
        given = self.query()
        try:
            page = await self.ask(lambda dag: read_list(dag, given))
        except DagabaazError as error:
            self.show_problem(error, 503)
            return
        self.show("runs.html", body=self.part("list.html", page=page, statuses=[status.value for status in RunStatus]))


def _call(app: Any, call: Callable[[Dagabaaz], Answer]) -> Answer:
    try:
        return call(Dagabaaz.of(app))
    except DATABASE_ERRORS as error:
        if not is_outage(error):
            raise
        raise StoreUnavailable(
            f"The store's database is away ({describe_outage(error)}): nothing can be shown of runs. Look again when "
            "it is back."
        ) from error


def _took(start: float | None, end: float | None) -> str:
    return "—" if start is None or end is None else format_seconds(max(0.0, end - start))


_UUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
HANDLERS = [
    web.url(rf"/task/({_UUID})", RunView),
    web.url(r"/dagabaaz", RunsView, name="dagabaaz-runs"),
    web.url(r"/dagabaaz/", RunsView),
]
