"""A run live in a terminal: a bar for each node, as many as fit, how fast it goes and how long it may take."""

import time
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import AbstractContextManager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from dagabaaz_celery.cli.output import clean, format_duration, style_state
from dagabaaz_celery.cli.waiting import is_waiting
from dagabaaz_celery.drawing import DrawnNode, draw_run
from dagabaaz_celery.run import RunError, RunSnapshot

#: Nodes in a tall terminal, and lines that are not nodes.
_MAX_BARS = 25
_OTHER_LINES = 5
#: Which nodes are shown where not all fit: what goes on or went wrong first.
_RANKS = {"running": 0, "queued": 0, "crashed": 1, "failed": 1, "cancelled": 2, "completed": 3}
_LAST_RANK = 4


class Speed:
    """Tasks a second, over the last half minute in which a run was looked at."""

    _WINDOW = 30.0

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque()

    def note(self, moment: float, done: int) -> None:
        """Note how many tasks are done at a moment, in seconds."""
        if self._looks and done < self._looks[-1][1]:
            self._looks.clear()  # a retry made tasks open again
        self._looks.append((moment, done))
        while len(self._looks) > 2 and moment - self._looks[1][0] >= self._WINDOW:
            self._looks.popleft()

    @property
    def per_second(self) -> float:
        """0 until a task ended between two looks."""
        (begun, before), (now, done) = self._looks[0], self._looks[-1]
        return (done - before) / (now - begun) if now > begun else 0.0


class LiveBars(AbstractContextManager["LiveBars"]):
    """Bars on a console while the block lasts; the last state stays there."""

    def __init__(self, console: Console) -> None:
        self._bars = _Bars(
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", max_width=max(console.width // 3, 10)),
            ),
            BarColumn(bar_width=max(console.width // 4, 5), finished_style="green"),
            TextColumn("{task.fields[counts]}", markup=False, justify="right", table_column=Column(no_wrap=True)),
            _StateColumn("", table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console,
            auto_refresh=False,
        )
        self._console = console
        self._tasks: dict[str, TaskID] = {}
        self._speed = Speed()
        self._warning = ""

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def warn(self, words: str) -> None:
        """Have what it waits for stand below the bars, as long as it does."""
        self._warning = words

    def show(self, run: RunSnapshot) -> None:
        """Draw the run as it is now."""
        self._warning = self._warning if is_waiting(run) else ""
        nodes = draw_run(run).nodes
        shown = choose_nodes(nodes, max(min(self._console.height - _OTHER_LINES, _MAX_BARS), 3))
        for node in nodes:
            self._update(node, visible=node.slug in shown)
        done, total = sum(node.tasks_done for node in nodes), sum(node.tasks_total for node in nodes)
        self._speed.note(time.monotonic(), done)
        self._bars.head = _describe_run(run)
        self._bars.foot = [
            *_describe_hidden([node for node in nodes if node.slug not in shown]),
            Text(describe_pace(done, total, self._speed.per_second, ended=run.ended_at is not None), "dim"),
            *([Text(self._warning, "yellow")] if self._warning else []),
            *_describe_error(run.error),
        ]
        self._bars.start()  # the first time; before, each new bar would be drawn on its own
        self._bars.refresh()

    def _update(self, node: DrawnNode, *, visible: bool) -> None:
        counts = f"{node.tasks_done:,}/{node.tasks_total:,}" if node.tasks_total else ""
        if node.slug not in self._tasks:
            self._tasks[node.slug] = self._bars.add_task(clean(node.slug), total=1, counts=counts, node=node)
        self._bars.update(
            self._tasks[node.slug],
            completed=node.tasks_done,
            total=node.tasks_total or 1,  # of 0 it would be a full bar
            visible=visible,
            counts=counts,
            node=node,
        )


class _Bars(Progress):
    """Bars between a line above and some below."""

    head = Text()
    foot: Iterable[Text] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is drawn, from top to bottom."""
        yield self.head
        yield self.make_tasks_table([task for task in self.tasks if task.visible])
        yield from self.foot


class _StateColumn(TextColumn):
    def render(self, task: Task) -> Text:
        """The node's state, and how long it takes or took."""
        node: DrawnNode = task.fields["node"]
        line = style_state(node.state or "", node.words)
        if node.started_at is not None and node.ended_at is not None:
            line.append(f" {format_duration(node.ended_at - node.started_at)}", "dim")
        return line


def choose_nodes(nodes: Iterable[DrawnNode], room: int) -> set[str]:
    """Slugs of so many nodes: those that run first, then those that ended badly, then those that ended last."""
    ranked = sorted(nodes, key=lambda node: (_RANKS.get(node.state or "", _LAST_RANK), -(node.ended_at or 0.0)))
    return {node.slug for node in ranked[:room]}


def describe_pace(done: int, total: int, per_second: float, *, ended: bool) -> str:
    """How far the tasks are that are known so far, how fast they go, and when they would be done."""
    words = f"{done:,}/{total:,} tasks"
    if ended or not per_second:
        return words
    words += f", {per_second:,.1f} a second"
    return words if done >= total else f"{words}, ETA {format_duration((total - done) / per_second)}"


def _describe_run(run: RunSnapshot) -> Text:
    took = f" after {format_duration(run.ended_at - run.created_at)}" if run.ended_at else ""
    undoing = "" if run.rollback_status == "none" else f", rollback {run.rollback_status}"
    return Text.assemble(
        (clean(run.pipeline), "bold"),
        f"  {run.id}  ",
        style_state(run.status),
        (" (paused)" if run.paused else "", "yellow"),
        undoing,
        took,
    )


def _describe_hidden(nodes: list[DrawnNode]) -> list[Text]:
    if not nodes:
        return []
    counts = Counter(node.state for node in nodes)
    states = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    return [Text(f"and {len(nodes)} more nodes: {states}", "dim")]


def _describe_error(error: RunError | None) -> list[Text]:
    return [] if error is None else [Text(clean(error), "red")]
