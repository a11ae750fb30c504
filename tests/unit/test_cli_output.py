"""What commands print: tables that fit, times, trees, words that a terminal may see, and how fast a run goes."""

import io
import re
import time
from collections.abc import Sequence
from typing import Any

import click
import pytest
from rich.console import Console

from dagabaaz_celery.cli.bars import LiveBars, Speed, choose_nodes, describe_pace
from dagabaaz_celery.cli.output import (
    Column,
    ExitCode,
    clean,
    draw_bar,
    format_clock,
    format_duration,
    format_time,
    is_unicode,
    print_line,
    print_table,
)
from dagabaaz_celery.cli.starters import (
    ADDED_LINES,
    ADDED_PIPELINE,
    ADDED_STORE,
    DJANGO_CELERY,
    DJANGO_INIT,
    DJANGO_PIPELINES,
    STARTER,
)
from dagabaaz_celery.cli.tree import draw_tree
from dagabaaz_celery.cli.types import DURATION, NAMED_VALUE
from dagabaaz_celery.constants import RunStatus
from dagabaaz_celery.drawing import Drawing, DrawnNode
from dagabaaz_celery.run import NodeSnapshot, RunSnapshot

COLUMNS = [Column("RUN"), Column("STATUS"), Column("TOOK", optional=True, right=True), Column("KEY", optional=True)]
ROWS = [("run-1", "completed", "1.5s", "a key"), ("run-22", "failed", "10m00s", "")]


def print_on(width: int | None, columns: Sequence[Column] = COLUMNS, rows: Any = ROWS) -> list[str]:
    """A table's lines, in a terminal of this width or (None) in a pipe."""
    file = io.StringIO()
    console = Console(file=file, width=width or 80, force_terminal=width is not None, no_color=True, markup=False)
    print_table(console, columns, rows)
    return [line.replace("\x1b[1m", "").replace("\x1b[0m", "") for line in file.getvalue().splitlines()]


def test_a_table_is_aligned_and_has_no_codes_in_a_pipe():
    assert print_on(None) == [
        "RUN     STATUS       TOOK  KEY",
        "run-1   completed    1.5s  a key",
        "run-22  failed     10m00s",
    ]


def test_a_pipe_gets_whole_lines_however_long_they_are():
    long = "x" * 500
    assert print_on(None, rows=[(long, "failed", "", long)])[1].count("x") == 1000


def test_in_a_narrow_terminal_optional_columns_go_first_the_last_before_others():
    assert print_on(40)[0].split() == ["RUN", "STATUS", "TOOK", "KEY"]
    assert print_on(26) == ["RUN     STATUS       TOOK", "run-1   completed    1.5s", "run-22  failed     10m00s"]
    assert print_on(18)[0].split() == ["RUN", "STATUS"]


def test_where_no_row_fits_each_is_a_block():
    assert print_on(12) == [
        *("RUN: run-1", "STATUS: completed", "TOOK: 1.5s", "KEY: a key", ""),
        *("RUN: run-22", "STATUS: failed", "TOOK: 10m00s"),
    ]


def test_a_terminal_shows_no_optional_column_that_is_empty():
    assert print_on(80, rows=[("run-1", "failed", "", "k")])[0].split() == ["RUN", "STATUS", "KEY"]
    assert print_on(None, rows=[("run-1", "failed", "", "k")])[0].split() == ["RUN", "STATUS", "TOOK", "KEY"]


def test_wide_signs_are_aligned_by_their_width():
    lines = print_on(None, rows=[("茶茶", "failed", "", "k"), ("tea", "failed", "", "k")])
    assert lines[1].startswith("茶茶  failed")
    assert lines[2].startswith("tea   failed")


def test_an_output_in_ascii_gets_ascii():
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, "ascii", errors="backslashreplace", write_through=True))
    print_line(console, "größe")
    print_line(console, draw_bar(1, 2, width=4, unicode=is_unicode(console)))
    assert raw.getvalue() == b"gr\\xf6\\xdfe\n##..\n"


def test_what_is_shown_does_not_steer_the_terminal():
    assert clean("a\x1b[31mb\x07\u202ec\x9b") == "a\\x1b[31mb\\x07\\u202ec\\x9b"
    assert clean("a\nb\tc") == "a\\nb\\tc"
    assert clean("a\nb\tc", lines=True) == "a\nb\tc"
    assert clean("größe 🍵") == "größe 🍵"


def test_the_day_is_told_where_it_is_not_today():
    now = time.time()
    assert format_clock(now) == format_time(now).split()[1]
    assert format_clock(86400.0 * 2) == format_time(86400.0 * 2)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, ""), (-3, "0.0s"), (0.04, "0.0s"), (9.94, "9.9s"), (59.9, "59s"), (61, "1m01s"), (90000, "1d01h")],
)
def test_a_duration_is_told_in_its_two_largest_units(seconds: float | None, shown: str):
    assert format_duration(seconds) == shown


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1.5s", 1.5), ("30s", 30), ("10m", 600), ("2h", 7200), ("3d", 259200), ("1h30m", 5400)],
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: float):
    assert DURATION.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "h", "2 h", "2y", "-3h", "1h x", "inf"])
def test_what_is_no_duration_is_refused(text: str):
    with pytest.raises(click.BadParameter, match="is no duration"):
        DURATION.convert(text, None, None)


def test_a_named_value_is_split_at_its_first_sign():
    assert NAMED_VALUE.convert("query=a=b", None, None) == ("query", "a=b")
    assert NAMED_VALUE.convert("empty=", None, None) == ("empty", "")
    for wrong in ("word", "=value"):
        with pytest.raises(click.BadParameter, match="name=value"):
            NAMED_VALUE.convert(wrong, None, None)


def test_every_status_of_a_run_has_an_exit_code():
    codes = {status: ExitCode.of_run(status) for status in RunStatus}
    assert {status: int(code) for status, code in codes.items()} == {
        "pending": 6,
        "running": 6,
        "completed": 0,
        "failed": 3,
        "crashed": 4,
        "cancelled": 5,
    }


# -- the tree


def draw(*nodes: DrawnNode, unicode: bool = True) -> list[str]:
    return [line.plain for line in draw_tree(Drawing("p", None, nodes), unicode=unicode)]


def node(slug: str, *depends_on: str, **fields: Any) -> DrawnNode:
    return DrawnNode(slug, "", fields.pop("plugin", slug), depends_on, **fields)


def test_a_chain_is_not_indented():
    assert draw(node("a"), node("b", "a"), node("c", "b", plugin="work")) == ["a", "↓ b", "↓ c (work)"]


def test_branches_are_indented_and_a_join_says_what_else_it_waits_for():
    nodes = (node("a"), node("b", "a"), node("c", "a"), node("d", "b"), node("e", "d", "c"), node("f", "e"))
    assert draw(*nodes) == ["a", "├─ b", "│  ↓ d", "│  ↓ e  also after c", "│  ↓ f", "└─ c"]
    assert draw(*nodes, unicode=False) == ["a", "|- b", "|  v d", "|  v e  also after c", "|  v f", "`- c"]


def test_every_node_is_drawn_once_whatever_their_order_also_those_of_a_circle():
    nodes = (node("d", "c", "x"), node("c", "a"), node("a"), node("x", "y"), node("y", "x"), node("lost", "nobody"))
    drawn = draw(*nodes)
    assert sorted(line.strip("├└─│↓ ").split()[0] for line in drawn) == ["a", "c", "d", "lost", "x", "y"]


def test_a_chain_of_thousands_is_drawn():
    nodes = [node("n0"), *(node(f"n{n}", f"n{n - 1}") for n in range(1, 5000))]
    assert draw(*nodes)[-1] == "↓ n4999"


def test_a_node_of_a_run_says_how_it_is():
    running = node("a", state="running", tasks_total=2000, tasks_done=1340)
    last = node("end", state="waiting", run_on="always")
    assert draw(running, last) == ["a  running 1,340 / 2,000", "end  waiting  finaliser, on always"]


# -- a run that is watched


def test_where_not_all_nodes_fit_those_that_run_or_went_wrong_are_shown():
    states = ["completed", "waiting", "running", "failed", "skipped", "completed"]
    nodes = [node(f"n{n}", state=state, ended_at=float(n)) for n, state in enumerate(states)]
    assert choose_nodes(nodes, 2) == {"n2", "n3"}
    assert choose_nodes(nodes, 3) == {"n2", "n3", "n5"}
    assert choose_nodes(nodes, 9) == {f"n{n}" for n in range(6)}


def test_pace_is_told_while_it_is_known():
    assert describe_pace(5, 2000, 0.0, ended=False) == "5/2,000 tasks"
    assert describe_pace(500, 2000, 25.0, ended=False) == "500/2,000 tasks, 25.0 a second, ETA 1m00s"
    assert describe_pace(2000, 2000, 25.0, ended=True) == "2,000/2,000 tasks"


def test_speed_is_that_of_the_last_half_minute():
    speed = Speed()
    for second in range(100):
        speed.note(float(second), 10 * second)
    assert speed.per_second == pytest.approx(10)
    for second in range(100, 140):
        speed.note(float(second), 990)
    assert speed.per_second == 0
    speed.note(141.0, 0)  # a retry
    assert speed.per_second == 0


def test_bars_fit_a_small_terminal_and_say_what_is_not_shown():
    nodes = [
        NodeSnapshot(
            slug=f"node-{n}",
            name="",
            plugin="work",
            depends_on=(),
            status="completed" if n < 40 else "launched" if n < 44 else "blocked",
            tasks_total=50,
            tasks_done=50 if n < 40 else 10 if n < 44 else 0,
            tasks={"completed": 50} if n < 40 else {"running": 40, "completed": 10} if n < 44 else {},
            started_at=1.0 if n < 44 else None,
            ended_at=2.0 + n if n < 40 else None,
            rollback=None,
            rollback_tasks={},
            run_on=None,
        )
        for n in range(100)
    ]
    run = RunSnapshot(
        id="01a22bc9-c324-7000-8891-13b609f7c063",
        pipeline="[b]wide[/b]",
        version=None,
        key=None,
        tags={},
        status=RunStatus.RUNNING,
        paused=True,
        generation=1,
        rollback_status="none",
        nodes=nodes,
        error=None,
        created_at=1.0,
        ended_at=None,
        settled=False,
    )
    file = io.StringIO()
    with LiveBars(Console(file=file, width=72, height=15, force_terminal=True, no_color=True)) as bars:
        bars.show(run)
    lines = file.getvalue().replace("\x1b[?25l", "").rpartition("\x1b[2K")[2].splitlines()
    lines = [re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", line).strip() for line in lines]
    assert lines[0] == f"[b]wide[/b]  {run.id}  running (paused)"
    assert [line.split()[0] for line in lines[1:11]] == [f"node-{n}" for n in (34, 35, 36, 37, 38, 39, 40, 41, 42, 43)]
    assert lines[11] == "and 90 more nodes: 56 waiting, 34 completed"
    assert lines[12] == "2,040/5,000 tasks"
    assert all(len(line) <= 72 for line in lines)


# -- what init writes


def test_what_is_written_is_python():
    starters = [STARTER.format(module="proj", prefix=""), DJANGO_CELERY.format(project="site"), DJANGO_INIT]
    for text in (*starters, ADDED_LINES, ADDED_PIPELINE, ADDED_STORE):
        compile(text, "written", "exec")
    compile(DJANGO_PIPELINES.format(prefix="orders_"), "written", "exec")
