"""What the benchmarks make of their samples: figures, ratios, tables, and their place on a page."""

from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import report, summary
from tests.benchmarks.document import BEGIN, END, build_text, merge, write_page
from tests.benchmarks.sampling import Sample
from tests.benchmarks.session import rotate
from tests.benchmarks.shapes import ALL, BY_NAME, choose
from tests.benchmarks.stamps import StampFile
from tests.benchmarks.summary import Results, summarize

FACTS = {
    "at": "2026-11-30 12:00 UTC",
    "revision": "abc",
    "command": "python -m tests.benchmarks",
    "cores": 2,
    "processor": "some",
    "system": "Linux",
    "load": 0.5,
    "python": "3.11",
    "servers": {"redis": "7.0"},
    "packages": {"celery": "5.7.0"},
    "workers": "celery worker -c 2",
    "settings": {"task_acks_late": True},
    "settings of ours": {},
}


def sample(rival: str = "ours", round_: int = 0, makespan: float = 1.0, **fields: Any) -> Sample:
    return Sample(
        **{"pair": "sqlite-redis", "shape": "fan-100", "cpu": makespan / 2, **fields},
        rival=rival,
        round=round_,
        makespan=makespan,
    )


def test_a_figure_tells_median_and_range():
    figure = summarize([3.0, 1.0, 2.0])

    assert (figure.median, figure.least, figure.most, figure.rounds) == (2.0, 1.0, 3.0, 3)
    assert figure.text("s") == "2 s (1 to 3)"
    assert summarize([0.01234]).text("ms", scale=1000) == "12.3 ms"


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (0.00123456, "0.00123"), (1.5, "1.5"), (99.94, "99.9"), (1234.5, "1,234")]
)
def test_numbers_are_shown_in_three_digits(value: float, shown: str):
    assert summary.show(value) == shown


def test_a_ratio_is_taken_within_each_round_and_leaves_out_rounds_that_miss_one():
    results = Results(
        [
            *(sample("ours", n, makespan) for n, makespan in enumerate([2.0, 20.0, 6.0, 1.0])),
            *(sample("sql limit", n, makespan) for n, makespan in enumerate([1.0, 10.0, 2.0])),
        ]
    )

    ratio = results.ratio("sqlite-redis", ("fan-100", "ours"), ("fan-100", "sql limit"), summary.seconds)

    assert ratio is not None
    assert (ratio.median, ratio.least, ratio.most, ratio.rounds) == (2.0, 2.0, 3.0, 3)


def test_a_sample_that_failed_counts_for_no_figure_and_is_told():
    results = Results([sample(makespan=2.0), sample(round_=1, error="it hung\nlog")])

    assert results.figure("sqlite-redis", "fan-100", "ours", summary.seconds) == summarize([2.0])
    assert report.failures(results) == "- sqlite, redis: fan-100, round 2, ours: it hung"


def test_bodies_that_ran_again_are_told():
    assert "3 bodies ran again" in report.failures(Results([sample(extra_bodies=3)]))


def test_tasks_that_lay_at_the_broker_are_timed_between_bodies():
    waiting = sample(shape="noop-3000", makespan=9.0, span=3.0)

    assert summary.rate(waiting) == 1000
    assert summary.seconds_per_task(sample(makespan=2.0)) == pytest.approx(0.02)


def test_noise_is_the_typical_range_of_a_cell():
    results = Results([sample("ours", n, makespan) for n, makespan in enumerate([1.0, 2.0, 1.5])])

    assert results.noise() == pytest.approx((2.0 - 1.0) / 1.5)
    assert Results([sample()]).noise() is None


def test_the_table_of_times_has_ours_by_the_limit_and_by_canvas():
    text = report.times(Results([sample("ours", 0, 2.0), sample("sql limit", 0, 1.0), sample("canvas", 0, 4.0)]))

    assert text.splitlines()[0] == (
        "| store, broker | shape | sql limit | canvas | ours | speed by SQL limit | time by canvas |"
    )
    assert text.splitlines()[2] == "| sqlite, redis | fan-100 | 1 s | 4 s | 2 s | 0.5 | 0.5 |"


def test_costs_in_larger_shapes_are_told_by_those_in_smaller_ones():
    text = report.scaling(Results([sample(makespan=0.1), sample(shape="fan-10000", makespan=12.0)]))

    assert text.splitlines()[2:] == ["| sqlite, redis | fan-10000 / fan-100 | ours | 1.2 | 1.2 |"]


def test_what_was_not_measured_has_no_table():
    results = Results([])

    tables = [report.times, report.rates, report.hops, report.costs, report.scaling, report.memory, report.failures]
    assert [table(results) for table in tables] == [""] * len(tables)
    assert report.sent([]) == report.idle([]) == report.peers([]) == ""


def test_what_is_sent_is_told_for_each_task():
    cell = {"pair": "sqlite-redis", "shape": "fan-100", "rival": "ours", "messages": 102, "message_bytes": 104_000}

    text = report.sent([{**cell, "statements": 500, "commits": 210}])

    assert text.splitlines()[2] == "| sqlite, redis | fan-100 | ours | 1.02 | 1,040 | 5 | 2.1 | 0.10 |"


def test_a_peer_that_did_not_run_is_named():
    cell = {"peer": "dbos", "version": "3", "shape": "fan-1000", "seconds": [4.0], "ours": [2.0], "error": ""}

    text = report.peers([cell, {**cell, "peer": "prefect", "error": "no wheel"}])

    assert text.splitlines()[2:] == [
        "| dbos 3 | fan-1000 | 4 s | 2 s | 2 |",
        "| prefect 3 | fan-1000 | did not run: no wheel |  |  |",
    ]


def test_a_page_gets_the_tables_between_its_marks(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    text = build_text({"facts": FACTS, "samples": [vars(sample())], "left_out": ["mariadb-redis: no server"]})

    write_page(page, text, [tmp_path / "images" / "cost-by-width.svg"])

    picture = "![cost by width](images/cost-by-width.svg)"
    assert page.read_text() == f"before\n\n{BEGIN}\n\n{text}\n\n{picture}\n\n{END}\n\nafter\n"
    assert "### Time" in text
    assert "### What was not measured\n\n- mariadb-redis: no server" in text


def test_several_runs_are_told_together():
    first = {"facts": FACTS, "samples": [vars(sample())], "counts": [], "idle": [], "left_out": ["a"]}
    second = {"facts": {**FACTS, "command": "other", "load": 9}, "samples": [], "left_out": ["b"]}

    merged = merge([first, second])

    assert merged["facts"] == {**FACTS, "command": "python -m tests.benchmarks`, `other"}
    assert (len(merged["samples"]), merged["left_out"], merged["peers"]) == (1, ["a", "b"], [])


def test_a_page_without_marks_is_left_alone(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("words")

    with pytest.raises(ValueError, match="has no marks"):
        write_page(page, "text")
    assert page.read_text() == "words"


def test_shapes_are_chosen_by_name_or_by_its_beginning():
    assert choose(["fan-1000"]) == [BY_NAME["fan-1000"]]
    assert [shape.kind for shape in choose(["chain", "chain-40"])] == ["chain", "chain"]
    with pytest.raises(ValueError, match="there is no shape 'fun'"):
        choose(["fun"])


@pytest.mark.parametrize("shape", ALL, ids=lambda shape: shape.name)
def test_every_shape_has_stages_and_a_name_that_tells_its_kind(shape: Any):
    assert shape.name.startswith(shape.kind)
    assert min(shape.stages) >= 1
    assert shape.tasks <= shape.runs * sum(shape.stages)


def test_rounds_begin_with_another_rival_each():
    assert [rotate("abc", n) for n in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]


def test_stamps_of_all_processes_are_read_in_the_order_of_their_times(tmp_path: Path):
    writer, reader = StampFile(tmp_path / "stamps"), StampFile(tmp_path / "stamps")
    for stage in range(3):
        writer.write(7, stage)

    assert reader.count() == 3
    assert [(stamp.sample, stamp.stage) for stamp in reader.read(1)] == [(7, 1), (7, 2)]
    writer.close()
    reader.close()
