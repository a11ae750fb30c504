"""Commands of ``celery -A proj dagabaaz``: what they print, what they do, and the code with which they end."""

import json
import re
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import click
import pytest
from celery import Celery
from celery.bin.base import CLIContext
from celery.bin.celery import celery as celery_command
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.cli import COMMANDS, dagabaaz, steer, waiting
from dagabaaz_celery.cli.remedies import WORDS
from dagabaaz_celery.errors import Remedy, RunStateError
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.run import NodeSnapshot, RunSnapshot
from dagabaaz_celery.stores.sql.tables import new_id
from dagabaaz_celery.summary import RunSummary
from tests.integration.cli_support import Shell, gate, quiet_shell, shell, start, worker

__all__ = ["quiet_shell", "shell", "worker"]


# -- the group


def test_every_command_is_listed_and_has_an_example_that_it_takes(quiet_shell: Shell):
    context = click.Context(dagabaaz, info_name="dagabaaz")
    assert dagabaaz.list_commands(context) == list(COMMANDS)
    for name in COMMANDS:
        command = dagabaaz.get_command(context, name)
        shown = quiet_shell.type(name, "--help")
        examples = re.findall(rf"^  +(celery .*dagabaaz {name}\b.*)$", shown, re.MULTILINE)
        assert examples, name
        known = {option for parameter in command.params for option in parameter.opts}
        for example in examples:
            assert set(re.findall(r" (--?[a-z][a-z-]*)", example.partition(f"dagabaaz {name}")[2])) <= known, example


def test_a_misspelt_command_is_answered_with_the_one_that_was_meant(quiet_shell: Shell):
    assert "runs" in quiet_shell.refuse("rums", code=2)


def test_without_an_app_it_is_said_how_to_name_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CELERY_APP", raising=False)
    # Other tests of this process may have made an app that Celery takes where none is named.
    monkeypatch.setattr("celery.bin.base.get_current_app", lambda: Celery("default", set_as_current=False))
    result = CliRunner().invoke(celery_command, ["dagabaaz", "runs"])
    assert result.exit_code == 2
    assert "no app was named" in result.output
    assert "celery -A proj dagabaaz runs" in result.output


def test_an_app_without_pipelines_is_told_so():
    app = Celery("bare", set_as_current=False)
    result = CliRunner().invoke(dagabaaz, ["runs"], obj=CLIContext(app=app, no_color=False, workdir=None))
    assert result.exit_code == 1
    assert result.stderr.startswith("Error [DGB101]: The app 'bare' has no Dagabaaz.")


def test_a_database_that_is_away_is_an_error_in_a_line(tmp_path: Path):
    app = Celery("away", broker="redis://127.0.0.1:1/0", set_as_current=False)
    app.conf.dagabaaz_store_url = "postgresql+psycopg://nobody@127.0.0.1:1/none"
    dag = Dagabaaz(app)

    @dag.plugin
    def nothing() -> None: ...

    dag.register(Pipeline("p", nodes=[DagNode(slug="a", plugin="nothing")]))
    try:
        for words in (["runs"], ["start", "p"], ["show", new_id()], ["cancel", "--yes", "--pipeline", "p"]):
            said = Shell(dag).refuse(*words, code=69)
            assert said.startswith("Error [DGB204]: ")
            assert "away" in said
    finally:
        dag.close()
        app.close()


# -- lists


def test_runs_are_listed_newest_first_as_text_and_as_json(quiet_shell: Shell):
    assert quiet_shell.type("runs") == "No runs.\n"
    first = quiet_shell.dag.start("good", key="k1", tags={"customer": "42"})
    second = quiet_shell.dag.start("slow", {"n": 2})
    second.pause()

    lines = quiet_shell.type("runs").splitlines()
    assert lines[0].split() == ["RUN", "PIPELINE", "STATUS", "AGE", "TOOK", "NODES", "KEY", "TAGS"]
    assert [line.split()[:4] for line in lines[1:]] == [
        [second.id, "slow", "running", "(paused)"],
        [first.id, "good", "running", lines[2].split()[3]],
    ]
    assert lines[2].endswith("0/2  k1   customer=42")
    found = quiet_shell.read("runs")
    assert [set(run) for run in found] == [set(RunSummary.__dataclass_fields__)] * 2
    assert [(run["id"], run["paused"], run["tags"]) for run in found] == [
        (second.id, True, {}),
        (first.id, False, {"customer": "42"}),
    ]


def test_runs_are_chosen_by_each_criterion(quiet_shell: Shell):
    first = quiet_shell.dag.start("good", tags={"customer": "42", "kind": "a"})
    second = quiet_shell.dag.start("good", tags={"customer": "42"})
    third = quiet_shell.dag.start("slow")
    third.cancel()

    def find(*words: str) -> list[str]:
        return [run["id"] for run in quiet_shell.read("runs", *words)]

    assert find("--status", "cancelled") == [third.id]
    assert find("--pipeline", "good") == [second.id, first.id]
    assert find("--tag", "customer=42", "--tag", "kind=a") == [first.id]
    assert find("--limit", "1") == [third.id]
    assert find("--since", "1h") == find("--age", "1h") == [third.id, second.id, first.id]
    assert find("--older-than", "1h") == []
    assert quiet_shell.type("runs", "--older-than", "1h") == "No such runs.\n"
    assert "is no duration" in quiet_shell.refuse("runs", "--since", "soon", code=2)
    assert "name=value" in quiet_shell.refuse("runs", "--tag", "customer", code=2)


def test_pipelines_are_listed_with_what_they_are(quiet_shell: Shell):
    saved = quiet_shell.dag.save(Pipeline("saved", nodes=[DagNode(slug="a", plugin="make")], description="Kept"))
    lines = quiet_shell.type("pipelines").splitlines()
    assert [line.split() for line in lines] == [
        ["PIPELINE", "VERSION", "NODES", "DESCRIPTION"],
        ["bad", "2"],
        ["good", "2", "Two"],
        ["saved", "1", "1", "Kept"],
        ["slow", "1"],
        ["stuck", "1"],
    ]
    assert quiet_shell.read("pipelines")[2] == {
        "name": "saved",
        "version": saved.version,
        "description": "Kept",
        "nodes": ["a"],
    }


# -- pipelines


def test_pipelines_are_checked_by_name_by_file_or_all(quiet_shell: Shell, tmp_path: Path):
    good, bad, broken = tmp_path / "good.yaml", tmp_path / "bad.yaml", tmp_path / "broken.yaml"
    good.write_text("name: x\nnodes:\n  - {slug: a, plugin: make}\n")
    bad.write_text("name: x\nnodes:\n  - {slug: a, plugin: mak}\n  - {slug: b, plugin: make, depends_on: [c]}\n")
    broken.write_text("name: x\nnodes: [\n")

    assert quiet_shell.type("validate").splitlines() == ["bad: fine", "good: fine", "slow: fine", "stuck: fine"]
    assert quiet_shell.type("validate", "good") == "good: fine\n"
    assert quiet_shell.type("validate", str(good)) == f"{good}: fine\n"
    said = quiet_shell.type("validate", str(bad), code=1)
    assert said.startswith(f"{bad}: 2 problems\n- ")
    assert "did you mean make" in said
    assert "'b'" in said
    assert "line 3" in quiet_shell.type("validate", str(broken), code=1)
    bad.write_text("name: x\ncolour: red\nnodes:\n  - {slug: a, plugin: mak, retries: 3}\n")
    said = quiet_shell.type("validate", str(bad), code=1)
    assert said.startswith(f"{bad}: 3 problems\n- ")
    assert "unknown field" in said
    assert "did you mean make" in said
    bad.write_text("name: x\nnodes:\n  - {plugin: 7, retries: 3}\n")
    assert quiet_shell.type("validate", str(bad), code=1).startswith(f"{bad}: 2 problems\n- ")
    bad.write_text("name: x\nnodes:\n  - {slug: a, plugin: mak}\n  - {slug: b, plugin: make, depends_on: [c]}\n")
    found = quiet_shell.read("validate", str(bad), code=1)
    assert (found[0]["pipeline"], len(found[0]["problems"])) == (str(bad), 2)
    assert "cannot be read" in quiet_shell.refuse("validate", "nothing.yaml", code=2)
    assert "[DGB302]" in quiet_shell.refuse("validate", "gud")


def test_a_pipeline_and_a_run_are_drawn_in_each_format(shell: Shell):
    run = start(shell.dag, "bad")

    assert shell.type("graph", "good").splitlines() == ["good", "made (make)", "↓ doubled (double)"]
    assert shell.type("graph", run.id).splitlines() == [
        f"bad, run {run.id}: failed",
        "made (make)  completed, undone",
        "↓ spoilt (spoil)  failed",
    ]
    assert "flowchart" in shell.type("graph", "good", "--format", "mermaid")
    assert shell.type("graph", "good", "--format", "dot").startswith("digraph")
    assert shell.type("graph", "@last", "--format", "svg").lstrip().startswith("<svg")
    assert shell.read("graph", run.id) == json.loads(shell.type("graph", run.id, "--format", "json"))
    assert [node["slug"] for node in shell.read("graph", run.id)["nodes"]] == ["made", "spoilt"]
    said = shell.refuse("graph", "godo")
    assert "There is no pipeline 'godo'; did you mean good" in said


# -- starting


def test_a_run_is_started_with_values_that_are_json_or_text(shell: Shell):
    run_id = shell.type(
        "start", "good", "--input", "n=3", "--input", "word=a b", "--tag", "a=b", "--key", "k-3"
    ).strip()
    run = shell.dag.run(run_id)
    assert run.wait(30) == "completed"
    assert (run.input, run.tags, run.snapshot().key) == ({"n": 3, "word": "a b"}, {"a": "b"}, "k-3")
    assert shell.type("start", "good", "--input", "n=3", "--input", "word=a b", "--key", "k-3").strip() == run_id
    assert "[DGB403]" in shell.refuse("start", "good", "--input", "n=4", "--key", "k-3")
    assert shell.read("start", "good")["pipeline"] == "good"


def test_the_input_comes_from_a_file_or_the_standard_input(shell: Shell, tmp_path: Path):
    yaml, as_json, odd = tmp_path / "in.yaml", tmp_path / "in.json", tmp_path / "odd.yaml"
    yaml.write_text("n: 2\nword: [a, b]\n")
    as_json.write_text('{"n": 2, "word": "x"}')
    odd.write_text("- 1\n")

    def read_input(*words: str, given: str | None = None) -> dict[str, Any]:
        return shell.dag.run(shell.type("start", "good", *words, given=given).strip()).input

    assert read_input("--input-file", str(as_json), "--input", "word=y") == {"n": 2, "word": "y"}
    assert read_input("--input-file", "-", given='{"n": 4}') == {"n": 4}
    assert read_input("--input-file", "-", given="n: 4\nword: x\n") == {"n": 4, "word": "x"}
    assert read_input("--input-file", str(yaml), "--input", 'word="7"') == {"n": 2, "word": "7"}
    assert "names with values" in shell.refuse("start", "good", "--input-file", str(odd), code=2)
    assert "cannot be read" in shell.refuse("start", "good", "--input-file", "nothing", code=2)
    as_json.write_text("{n: 2}")
    assert "is no JSON" in shell.refuse("start", "good", "--input-file", str(as_json), code=2)
    odd.write_text("n: [")
    assert "neither JSON nor YAML: line 2" in shell.refuse("start", "good", "--input-file", str(odd), code=2)


def test_what_cannot_start_is_an_error_in_a_line(shell: Shell):
    assert shell.refuse("start", "godo").startswith("Error [DGB302]: There is no pipeline 'godo'; did you mean good?")
    assert "[DGB404]" in shell.refuse("start", "good", "--input", "n=[1]", "--timeout", "0")


def test_a_started_run_is_watched_to_its_end_whose_code_it_gives(shell: Shell):
    lines = shell.type("start", "good", "--input", "n=20", "--watch").splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d  run \S+ of good: running", lines[0])
    assert re.fullmatch(r"\d\d:\d\d:\d\d  run \S+ of good: completed after \S+", lines[-1])
    assert any(line.endswith("doubled: completed 20/20") for line in lines)
    assert len(lines) < 30

    lines = shell.type("start", "bad", "--watch", code=3).splitlines()
    assert lines[-1].endswith("ValueError: number 0 is [red]spoilt[/red] (node spoilt)")
    assert "failed, rollback done after" in lines[-1]


# -- looking at a run


def test_a_run_is_shown_with_its_nodes_and_errors(shell: Shell):
    run = start(shell.dag, "bad", input={"n": 12}, tags={"customer": "42"})

    shown = shell.type("show", run.id)
    assert re.search(rf"^run +{run.id}$", shown, re.MULTILINE)
    assert re.search(r"^status +failed$", shown, re.MULTILINE)
    assert re.search(r"^rollback +done$", shown, re.MULTILINE)
    assert re.search(r"^tags +customer=42$", shown, re.MULTILINE)
    assert re.search(r'^input +\{"n": 12\}$', shown, re.MULTILINE)
    assert re.search(r"^made +completed, undone +1/1 +\S+ +█{10} +\S+ \S+ +make$", shown, re.MULTILINE)
    assert re.search(r"^spoilt +\d+ failed", shown, re.MULTILINE)
    assert "- ValueError: number 0 is [red]spoilt[/red] (node spoilt)" in shown
    assert "Traceback" not in shown
    assert "raise ValueError" in shell.type("show", run.id, "--traceback")
    assert "ValueError" not in shell.type("show", run.id, "--errors", "0")

    found = shell.read("show", run.id)
    assert set(found) == {*RunSnapshot.__dataclass_fields__, "input", "errors"}
    assert set(found["nodes"][0]) == set(NodeSnapshot.__dataclass_fields__)
    assert found["errors"][0]["type"] == "ValueError"


def test_a_run_is_found_by_its_beginning_or_as_the_last(quiet_shell: Shell):
    assert "no run yet" in quiet_shell.refuse("show", "@last")
    first, second = quiet_shell.dag.start("good"), quiet_shell.dag.start("slow")

    assert quiet_shell.read("show", "@last")["id"] == second.id
    assert quiet_shell.read("show", first.id[:-1])["id"] == first.id
    assert quiet_shell.read("show", first.id.replace("-", "").upper()[:31])["id"] == first.id
    said = quiet_shell.refuse("show", first.id[:4])
    assert first.id in said
    assert second.id in said
    assert "[DGB401]: No run's id begins with ffff0" in quiet_shell.refuse("show", "ffff0")
    assert "at least 4 digits" in quiet_shell.refuse("show", "01a")
    assert "at least 4 digits" in quiet_shell.refuse("show", "good")
    assert "[DGB401]" in quiet_shell.refuse("show", new_id())


def test_artifacts_are_counted_by_node_or_shown(shell: Shell):
    run = start(shell.dag, "good", input={"n": 3})

    assert [line.split() for line in shell.type("artifacts", run.id).splitlines()[1:]] == [
        ["made", "3"],
        ["doubled", "3"],
    ]
    assert shell.read("artifacts", run.id) == {"made": 3, "doubled": 3}
    lines = shell.type("artifacts", run.id, "doubled", "--limit", "2").splitlines()
    assert [line.split(maxsplit=1) for line in lines[1:3]] == [["0", '{"n": 0}'], ["1", '{"n": 2}']]
    assert lines[3] == "… and more: --limit 4 shows them."
    assert [one["metadata"] for one in shell.read("artifacts", run.id, "made")] == [
        {"n": n, "word": "tea"} for n in range(3)
    ]
    assert "[DGB402]" in shell.refuse("artifacts", run.id, "nothing")


def test_a_wide_run_is_shown_in_few_lines_and_statements(quiet_shell: Shell):
    """Nothing that is shown of a run reads its tasks one by one."""
    from tests.integration.sql_stores import counting_statements

    store = quiet_shell.dag._runtime.store
    run = quiet_shell.dag.start("good")
    with store.database.write() as connection:
        task = dict(connection.execute(store.tables.task.select()).mappings().one())
        rows = [
            {**task, "id": new_id(), "attempt_id": new_id(), "ordinal": n, "node_index": 1, "status": "failed"}
            | {"error": '{"type": "ValueError", "message": "no", "traceback": ""}'}
            for n in range(3000)
        ]
        connection.execute(store.tables.task.insert(), rows)

    with counting_statements(store) as statements:
        shown = quiet_shell.type("show", run.id)
    assert len(shown.splitlines()) < 20
    assert "ValueError: no (node doubled) (10 times)\n… and more: --errors 100 shows them." in shown
    assert len(statements) < 15
    assert len(quiet_shell.type("graph", run.id).splitlines()) == 3
    assert len(quiet_shell.read("show", run.id)["errors"]) == 10


# -- watching


def test_a_watched_run_ends_with_the_code_of_its_outcome(shell: Shell):
    good, bad = start(shell.dag, "good"), start(shell.dag, "bad")
    cancelled = shell.dag.start("slow")
    cancelled.cancel("not wanted")
    shell.type("watch", good.id)
    shell.type("watch", bad.id, code=3)
    assert "cancelled" in shell.type("watch", cancelled.id, code=5)


def test_a_run_that_is_not_over_in_time_goes_on(shell: Shell):
    run = shell.dag.start("slow")
    said = shell.refuse("watch", run.id, "--timeout", "0.2s", code=6)
    assert said.startswith("Error [DGB406]")
    assert run.status == "running"
    gate.set()
    assert run.wait(30) == "completed"


def test_changes_are_lines_of_json(shell: Shell):
    run = start(shell.dag, "good", input={"n": 2})
    changes = [json.loads(line) for line in shell.type("watch", run.id, "--json").splitlines()]
    assert all(set(change) == {"run", "node", "status", "tasks_done", "tasks_total", "at"} for change in changes)
    assert [(change["node"], change["status"], change["tasks_done"]) for change in changes] == [
        ("made", "completed", 1),
        ("doubled", "completed", 2),
        (None, "completed", 3),
    ]


def test_changes_of_a_run_that_has_ended_have_the_times_of_their_ends(shell: Shell):
    seen = start(shell.dag, "bad", input={"n": 2}).snapshot()
    time.sleep(0.01)
    changes = [json.loads(line) for line in shell.type("watch", seen.id, "--json", code=3).splitlines()]
    ends = {node.slug: node.ended_at for node in seen.nodes} | {None: seen.ended_at}
    assert {change["node"]: change["at"] for change in changes} == ends


def test_a_run_whose_tasks_wait_says_in_which_queue(quiet_shell: Shell, monkeypatch: pytest.MonkeyPatch):
    run = quiet_shell.dag.start("slow")
    told = "1 task waits in the queue celery, and none runs: `doctor` tells whether a worker takes them.\n"
    assert told in quiet_shell.type("show", run.id)
    monkeypatch.setattr(waiting, "_PATIENCE", 0.1)
    watched = quiet_shell.run("watch", run.id, "--timeout", "1s")
    assert (watched.exit_code, watched.stderr.count(told)) == (6, 1)
    run.pause()
    assert "waits in" not in quiet_shell.type("show", run.id)


def test_an_interrupt_before_a_run_is_shown_has_its_code_too(quiet_shell: Shell, monkeypatch: pytest.MonkeyPatch):
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(quiet_shell.dag.app.loader, "import_default_modules", interrupt)
    assert quiet_shell.refuse("watch", "@last", code=130) == "\nInterrupted.\n"


# -- steering


def test_a_failed_run_is_retried_and_watched(shell: Shell):
    run = start(shell.dag, "bad")
    assert shell.type("retry", run.id) == f"Run {run.id} runs again.\n"
    run.wait(30, rollback=True)
    assert run.snapshot().generation == 2
    assert "[DGB402]" in shell.refuse("retry", run.id, "--from", "nothing")
    assert "of bad: failed" in shell.type("retry", run.id, "--from", "made", "--watch", code=3)
    completed = start(shell.dag, "good")
    assert "[DGB405]" in shell.refuse("retry", completed.id)


def test_a_completed_run_is_rolled_back(shell: Shell):
    run = start(shell.dag, "good")
    assert "rollback done" in shell.type("rollback", run.id, "--watch").splitlines()[-1]
    assert run.rollback_status == "done"
    assert "[DGB405]" in shell.refuse("rollback", run.id)
    stuck = start(shell.dag, "stuck")
    assert "rollback failed" in shell.type("rollback", stuck.id, "--watch", code=3).splitlines()[-1]


def test_a_run_is_paused_and_goes_on(quiet_shell: Shell):
    run = quiet_shell.dag.start("good")
    assert "is paused" in quiet_shell.type("pause", run.id)
    assert run.snapshot().paused
    assert "goes on" in quiet_shell.type("resume", "@last")
    assert not run.snapshot().paused
    run.cancel()
    assert "[DGB405]" in quiet_shell.refuse("pause", run.id)


def test_runs_are_cancelled_by_name(quiet_shell: Shell):
    first, second = quiet_shell.dag.start("good"), quiet_shell.dag.start("slow")
    assert "[DGB401]" in quiet_shell.refuse("cancel", first.id, new_id())
    assert first.status == "running"  # all are looked up before one is cancelled
    said = quiet_shell.type("cancel", first.id, "@last", "--reason", "wrong file", "--terminate")
    assert said == f"Run {first.id}: cancelled\nRun {second.id}: cancelled\n"
    assert first.error is not None
    assert first.error.message == "wrong file"


def test_without_a_terminal_nobody_is_asked_about_the_last_run(shell: Shell):
    run = start(shell.dag, "bad")
    assert shell.type("retry", "@last") == f"Run {run.id} runs again.\n"
    run.wait(30, rollback=True)
    run = start(shell.dag, "good")
    assert shell.type("rollback", "@last", "--yes") == f"Run {run.id} is being undone.\n"


@pytest.mark.parametrize("verb", ["retry", "cancel", "rollback"])
def test_at_a_terminal_the_last_run_is_named_and_nothing_is_done_without_a_yes(
    quiet_shell: Shell, verb: str, monkeypatch: pytest.MonkeyPatch
):
    run = quiet_shell.dag.start("good")
    terminal = types.SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(steer, "sys", types.SimpleNamespace(stdin=terminal))
    asked = quiet_shell.run(verb, "@last", given="n\n")
    assert (asked.exit_code, run.status) == (1, "running")
    assert f" run {run.id} of good, which is running? [y/N]: n\n" in asked.stdout
    assert "[y/N]" not in quiet_shell.run(verb, "@last", "--yes").output
    assert "[y/N]" not in quiet_shell.run(verb, run.id).output


def test_at_a_terminal_the_last_run_has_failed(shell: Shell, monkeypatch: pytest.MonkeyPatch):
    run = start(shell.dag, "bad")
    monkeypatch.setattr(steer, "sys", types.SimpleNamespace(stdin=types.SimpleNamespace(isatty=lambda: True)))
    asked = shell.run("retry", "@last", given="n\n")
    assert f" run {run.id} of bad, which has failed? [y/N]: n\n" in asked.stdout


def test_runs_of_a_kind_are_counted_and_cancelled_when_that_is_confirmed(quiet_shell: Shell):
    runs = [quiet_shell.dag.start("good", tags={"n": str(n)}) for n in range(3)]
    other = quiet_shell.dag.start("slow")

    assert "Cancel 3 runs?" in quiet_shell.type("cancel", "--pipeline", "good", given="n\n", code=1)
    assert runs[0].status == "running"
    assert quiet_shell.type("cancel", "--tag", "n=1", "--yes") == "1 run cancelled.\n"
    assert "2 runs cancelled." in quiet_shell.type("cancel", "--pipeline", "good", given="y\n")
    assert [run.status for run in runs] == ["cancelled"] * 3
    assert other.status == "running"
    assert quiet_shell.type("cancel", "--pipeline", "good") == "0 runs cancelled.\n"
    assert "--pipeline or --tag" in quiet_shell.refuse("cancel", code=2)
    assert "'running'" in quiet_shell.refuse("cancel", "--status", "failed", code=2)
    assert "not both" in quiet_shell.refuse("cancel", other.id, "--pipeline", "slow", code=2)
    assert "1 run cancelled" in quiet_shell.type("cancel", "--status", "running", "--yes")


# -- what to do about an error


def test_every_remedy_has_words_of_the_command_line():
    assert set(WORDS) == set(Remedy)
    assert not [words for words in WORDS.values() if re.search(r"\w\(|\w=", words)]


def test_what_cannot_be_done_is_told_with_what_to_type(shell: Shell):
    run = start(shell.dag, "good")
    assert "name the node to begin at: `--from SLUG`" in shell.refuse("retry", run.id)
    shell.type("rollback", run.id, "--watch")
    assert "`show` tells how far it is" in shell.refuse("rollback", run.id)
    assert "`runs` lists those it has" in shell.refuse("show", new_id())
    stuck = start(shell.dag, "stuck")
    shell.type("rollback", stuck.id, "--watch", code=3)
    assert "try again with `rollback`" in shell.refuse("retry", stuck.id, "--from", "made")
    slow = shell.dag.start("slow")
    assert "see what `show`, `doctor`" in shell.refuse("watch", slow.id, "--timeout", "0", code=6)
    with pytest.raises(RunStateError, match=r"retry\(from_node=\.\.\.\)"):
        start(shell.dag, "good").retry()
    slow.cancel()


# -- tables


def test_the_stores_tables_are_made_checked_and_printed(quiet_shell: Shell):
    assert "has no tables yet" in quiet_shell.refuse("migrate", "--check")
    assert "CREATE TABLE dagabaaz_run" in quiet_shell.type("migrate", "--sql")
    assert "has schema" in quiet_shell.type("migrate")
    assert "which this release works with" in quiet_shell.type("migrate", "--check")
    assert "has no tables any more" in quiet_shell.type("migrate", "--down", "base")
    assert "not both" in quiet_shell.refuse("migrate", "--check", "--sql", code=2)


def test_an_app_without_a_store_has_no_tables_to_make(dag: Dagabaaz):
    assert "[DGB101]: dagabaaz_store_url is not set" in Shell(dag).refuse("migrate")


# -- completion


def complete(dag: Dagabaaz, *words: str) -> list[str]:
    """What a shell offers for the last of these words."""
    *before, incomplete = words
    given = {"obj": CLIContext(app=dag.app, no_color=False, workdir=None)}
    return [item.value for item in ShellComplete(dagabaaz, given, "x", "_X").get_completions(before, incomplete)]


def put_in_module(dag: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make an app what ``-A name`` finds."""
    module = types.ModuleType(name)
    module.app = dag.app  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)


def test_a_shell_completes_commands_names_runs_statuses_and_nodes(quiet_shell: Shell):
    run = quiet_shell.dag.start("good")
    dag = quiet_shell.dag

    assert complete(dag, "re") == ["retry", "resume"]
    assert complete(dag, "start", "") == ["bad", "good", "slow", "stuck"]
    assert complete(dag, "runs", "--pipeline", "go") == ["good"]
    assert complete(dag, "runs", "--status", "c") == ["completed", "crashed", "cancelled"]
    assert complete(dag, "show", "") == ["@last", run.id]
    assert complete(dag, "cancel", "@last", run.id[:6]) == [run.id]
    assert complete(dag, "graph", "") == ["bad", "good", "slow", "stuck", "@last", run.id]
    assert complete(dag, "artifacts", run.id, "") == ["made", "doubled"]
    assert complete(dag, "retry", "@last", "--from", "d") == ["doubled"]
    assert complete(dag, "runs", "--si") == ["--since"]


def test_a_shell_completes_nothing_where_the_store_cannot_be_asked():
    app = Celery("bare", set_as_current=False)
    assert (
        ShellComplete(dagabaaz, {"obj": CLIContext(app=app, no_color=False, workdir=None)}, "x", "_X").get_completions(
            ["show"], ""
        )
        == []
    )


def test_celerys_own_completion_loads_the_app_that_is_named(quiet_shell: Shell, monkeypatch: pytest.MonkeyPatch):
    put_in_module(quiet_shell.dag, "completed_app", monkeypatch)
    found = ShellComplete(celery_command, {}, "celery", "_CELERY_COMPLETE").get_completions(
        ["-A", "completed_app", "dagabaaz", "start"], "g"
    )
    assert [item.value for item in found] == ["good"]


# -- init


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CELERY_APP", raising=False)
    return tmp_path


def init(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(celery_command, ["dagabaaz", "init", *words], auto_envvar_prefix="CELERY")
    assert result.exit_code == code, result.output
    return result.output


def test_init_writes_a_starter_and_never_over_a_file(folder: Path):
    said = init("shop")
    assert "celery -A shop worker" in said
    assert "celery -A shop dagabaaz start hello --input name=World --watch" in said
    text = (folder / "shop.py").read_text()
    assert "stays as it is" in init("shop.py", code=1)
    assert (folder / "shop.py").read_text() == text
    assert "proj.py" in init()
    assert "no name of a Python module" in init("no-name", code=2)


def test_init_with_an_app_says_what_it_lacks(quiet_shell: Shell, folder: Path, monkeypatch: pytest.MonkeyPatch):
    def ask(app: Celery, module: str) -> str:
        put_in_module(types.SimpleNamespace(app=app), module, monkeypatch)
        monkeypatch.setenv("CELERY_APP", module)
        return init()

    bare = Celery("bare", broker="redis://127.0.0.1:1/0", set_as_current=False)
    said = ask(bare, "an_app_without_a_dagabaaz")
    assert "dag = Dagabaaz(app)" in said
    assert 'dag.register(Pipeline("hello"' in said
    dag = Dagabaaz(bare)
    said = ask(bare, "an_app_without_a_store_and_pipelines")
    assert "dagabaaz_store_url = " in said
    assert 'dag.register(Pipeline("hello"' in said
    assert "Dagabaaz(app)" not in said
    dag.close()
    bare.close()
    said = ask(quiet_shell.dag.app, "an_app_that_lacks_nothing")
    assert "`pipelines` lists" in said
    assert "Add" not in said
    assert not (folder / "proj.py").exists()


def test_init_writes_what_a_django_project_needs(folder: Path):
    from django.core.management import call_command

    call_command("startproject", "site_of_mine", str(folder))
    said = init()
    assert "Wrote site_of_mine/celery.py." in said
    assert "startapp" in said
    assert 'app = Celery("site_of_mine")' in (folder / "site_of_mine" / "celery.py").read_text()
    assert "celery_app" in (folder / "site_of_mine" / "__init__.py").read_text()
    assert "no Django app orders" in init("orders", code=1)

    (folder / "orders").mkdir()
    call_command("startapp", "orders", str(folder / "orders"))
    said = init()
    assert "site_of_mine/celery.py is there, and stays as it is." in said
    assert "from dagabaaz_celery.contrib.django import dag" in (folder / "orders" / "pipelines.py").read_text()
    assert '"dagabaaz_celery.contrib.django",\n    "orders",' in said
    assert "python manage.py migrate" in said
    assert "start orders_hello --input name=World" in said

    settings = folder / "site_of_mine" / "settings.py"
    with settings.open("a") as file:
        file.write("\nINSTALLED_APPS += [\n    'dagabaaz_celery.contrib.django',\n    'orders.apps.OrdersConfig',\n]\n")
        file.write('# CELERY_BROKER_URL = "amqp://"\n')
    said = init()
    assert "INSTALLED_APPS" not in said
    assert "CELERY_BROKER_URL = " in said
    assert "dagabaaz pipelines" in said  # what is written there is not known here


def test_init_gives_each_django_app_names_of_its_own(folder: Path):
    from django.core.management import call_command

    call_command("startproject", "site_of_mine", str(folder))
    with (folder / "site_of_mine" / "settings.py").open("a") as file:
        file.write("INSTALLED_APPS += ['dagabaaz_celery.contrib.django', 'orders', 'parcels']\n")
        file.write("CELERY_BROKER_URL = 'memory://'\n")
    for name in ("orders", "parcels"):
        (folder / name).mkdir()
        call_command("startapp", name, str(folder / name))
        assert "Add to the settings" not in init(name)

    def manage(*words: str) -> str:
        command = [sys.executable, "manage.py", *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    manage("migrate", "dagabaaz")
    lines = manage("dagabaaz", "pipelines").splitlines()
    assert [line.split()[0] for line in lines] == ["PIPELINE", "orders_hello", "parcels_hello"]
    assert "  manage.py dagabaaz runs --status failed" in manage("dagabaaz", "--help")
    assert "  manage.py dagabaaz show @last --traceback" in manage("dagabaaz", "show", "--help")
