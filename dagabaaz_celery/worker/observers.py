"""Who is told of what happens to runs in this process: tracing and metrics. Nobody, unless an app says so.

Observers are told after the commit that they hear of, by the process that made it: at most once, and not at all where
that process dies in between. What they raise is logged, and changes nothing of the run.

What an observer wants to know again later travels with the run: the texts that ``carry`` gives when a run starts are
stored with the run, and come back with everything that is told of it, in whichever process.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from dagabaaz_celery.constants import RunStatus
from dagabaaz_celery.pipeline import Definition
from dagabaaz_celery.stores.sql.records import CARRIED, Aftermath, NodeRow, RunRow, TaskError
from dagabaaz_celery.stores.sql.store import SqlStore, Work

logger = logging.getLogger(__name__)

Carried = Mapping[str, str]


@dataclass(frozen=True)
class RunFacts:
    """A run as committed; times are microseconds since 1970, by the database's clock."""

    id: str
    pipeline: str
    status: RunStatus
    generation: int
    created_at: int
    ended_at: int | None
    error: Mapping[str, Any] | None
    carried: Carried

    @classmethod
    def of(cls, run: RunRow) -> "RunFacts":
        """From the store's row."""
        return cls(
            id=run.id,
            pipeline=run.pipeline,
            status=run.status,
            generation=run.generation,
            created_at=run.created_at,
            ended_at=run.ended_at,
            error=run.error,
            carried=run.options.get(CARRIED, {}),
        )


@dataclass(frozen=True)
class NodeFacts:
    """A node that is over; ``undoes``: what is over is the undoing of its tasks.

    ``closed_at`` is the run's end for a node that was open then, whose ``status`` is then "failed" or "cancelled".
    """

    run: RunFacts
    index: int
    slug: str
    plugin: str
    status: str
    tasks_total: int
    opened_at: int
    closed_at: int
    undoes: bool


@dataclass
class Body:
    """A body that is about to run, and what its message said: ``queue``, and since when it could have run there.

    ``due_at`` are seconds since 1970 by the clock of the host that sent it. ``explain`` makes of what the body raised
    what is kept of it, without secrets, and says whether it asks for another attempt.
    """

    work: Work
    pipeline: str
    slug: str
    plugin: str
    carried: Carried
    queue: str | None
    due_at: float | None
    explain: Callable[[BaseException], tuple[TaskError, bool]] = field(repr=False)

    @property
    def undoes(self) -> bool:
        """Whether it undoes another task of its node."""
        return self.work.attempt.node_index < 0


@dataclass(frozen=True)
class Loss:
    """An attempt that ended without its body: its process was killed, or its worker died."""

    run: RunFacts
    work: Work
    slug: str
    plugin: str
    error: TaskError


class Observer:
    """Told of runs. Every method does nothing here: override what you want to know."""

    def carry(self, run_id: str, pipeline: str, before: Carried) -> Carried:
        """What to store with a run that starts, or starts again (``before``: what was stored at its last start)."""
        return {}

    def run_started(self, run: RunFacts) -> None:
        """A run was started, or started again by a retry."""

    def around_body(self, body: Body) -> AbstractContextManager[object]:
        """Entered in the body's thread after its claim, left when it returned or raised, with what it raised."""
        return nullcontext()

    def attempt_lost(self, loss: Loss) -> None:
        """An attempt ended with its process, which could not tell of it itself."""

    def node_closed(self, node: NodeFacts) -> None:
        """A node is over, or was open when its run ended."""

    def run_ended(self, run: RunFacts) -> None:
        """A run has ended. What it undoes follows."""

    def rescued(self, work: Work) -> None:
        """A lost attempt was given to others."""

    def swept(self, action: str, count: int) -> None:
        """A sweep did something that was left undone; ``action`` is one of a few words."""


class Observers:
    """Those of one app. False where there are none: whoever has something to tell asks that first."""

    def __init__(self) -> None:
        self._all: list[Observer] = []

    def __bool__(self) -> bool:
        return bool(self._all)

    def add(self, observer: Observer) -> None:
        """Tell this one, too, from now on."""
        self._all.append(observer)

    def find(self, kind: type[Observer]) -> Observer | None:
        """The first one of a class."""
        return next((observer for observer in self._all if isinstance(observer, kind)), None)

    def carry(self, run_id: str, pipeline: str, before: Carried) -> dict[str, str]:
        """What all of them want stored with a run."""
        carried: dict[str, str] = {}
        for observer in self._all:
            with _logged("carry"):
                carried |= observer.carry(run_id, pipeline, before)
        return carried

    def tell(self, what: str, *facts: Any) -> None:
        """Call a method of each."""
        for observer in self._all:
            with _logged(what):
                getattr(observer, what)(*facts)

    @contextmanager
    def around_body(self, body: Body) -> Iterator[None]:
        """Every observer's own context, the first one's outermost."""
        entered: list[AbstractContextManager[object]] = []
        for observer in self._all:
            with _logged("around_body"):
                context = observer.around_body(body)
                context.__enter__()
                entered.append(context)
        try:
            yield
        except BaseException as error:
            _leave(entered, error)
            raise
        _leave(entered, None)


def find_closed_nodes(store: SqlStore, aftermath: Aftermath) -> tuple[RunFacts, list[NodeFacts]]:
    """The run of a commit, and the nodes that are over by it: with the run's end also those that were open."""
    with store.read() as connection:
        run = store.require_run(connection, aftermath.run_id)
        definition = store.definitions.get(connection, run.definition_hash).definition
        nodes = store.rows.nodes.get_some(connection, run.id, aftermath.closed)
        if aftermath.has_end:
            nodes += [
                node
                for node in store.rows.nodes.get_all(connection, run.id)
                if node.status in ("launching", "launched")
            ]
    facts = RunFacts.of(run)
    return facts, [found for node in nodes if (found := _describe_node(facts, definition, node)) is not None]


def _describe_node(run: RunFacts, definition: Definition, node: NodeRow) -> NodeFacts | None:
    closed_at = node.closed_at or run.ended_at
    if node.opened_at is None or closed_at is None:
        return None  # a retry has opened it again meanwhile
    slug, status = definition.node_of(node.index).slug, node.status
    if node.closed_at is None:
        is_to_blame = run.error is not None and run.error.get("node") == slug
        status = "failed" if is_to_blame else "cancelled"
    undoes = node.index < 0
    plugin = definition.node_of(node.index).rollback if undoes else definition.node_of(node.index).plugin
    return NodeFacts(
        run=run,
        index=node.index,
        slug=slug,
        plugin=plugin or "",
        status=status,
        tasks_total=node.tasks_total,
        opened_at=node.opened_at,
        closed_at=closed_at,
        undoes=undoes,
    )


def tell_of_loss(observers: Observers, store: SqlStore, work: Work, error: TaskError) -> None:
    """Tell of an attempt that ended with its process; where the store cannot be read, nobody is told."""
    with _logged("attempt_lost"):
        run = RunFacts.of(store.get_run(work.attempt.run_id))
        definition = store.definition_of(work.definition_hash).definition
        node = definition.node_of(work.attempt.node_index)
        plugin = node.rollback if work.attempt.node_index < 0 else node.plugin
        observers.tell("attempt_lost", Loss(run, work, node.slug, plugin or "", error))


def _leave(entered: list[AbstractContextManager[object]], error: BaseException | None) -> None:
    for context in reversed(entered):
        with _logged("around_body"):
            try:
                context.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
            except BaseException as raised:
                if raised is not error:
                    raise


@contextmanager
def _logged(what: str) -> Iterator[None]:
    try:
        yield
    except Exception:
        logger.exception("an observer's %s raised: the run goes on", what)
