"""The reference lists what there is: every setting, error, field, pipe, operator, state, method and column."""

import ast
import enum
import inspect
import re
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from markdown_pages import ROOT, find_blocks, find_tables
from pydantic import BaseModel

from dagabaaz_celery import errors, models, pytest_plugin, store, testing
from dagabaaz_celery.cli import COMMANDS, dagabaaz
from dagabaaz_celery.cli.output import ExitCode
from dagabaaz_celery.constants import (
    RUN_RETRYABLE_STATUSES,
    RUN_TERMINAL_STATUSES,
    TASK_TERMINAL_STATUSES,
    FileType,
    FilterOperator,
    RunStatus,
    TaskStatus,
)
from dagabaaz_celery.context import PluginContext
from dagabaaz_celery.filter import filter_artifacts
from dagabaaz_celery.models import EdgeFilter, FilterRule, TaskArtifact
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.pipes import BUILTIN_PIPES, PIPE_ARITY
from dagabaaz_celery.retention import PruneReport
from dagabaaz_celery.run import NodeSnapshot, Run, RunError, RunSnapshot, TaskSnapshot
from dagabaaz_celery.settings import Settings
from dagabaaz_celery.stores.sql.records import OWED_KINDS, RollbackStatus
from dagabaaz_celery.stores.sql.tables import NODE_STATUSES, build_tables

REFERENCE = ROOT / "docs" / "reference"


def read_names(page: str, heading: str) -> list[str]:
    """Every name in backticks in the first column of the tables below a heading, a method's without its arguments."""
    cells = (row[0] for row in find_tables(REFERENCE / page, heading))
    return [re.sub(r"\(.*", "", name) for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def public_names(cls: type) -> set[str]:
    return {name for name in vars(cls) if not name.startswith("_")}


def test_every_setting_is_listed_with_its_default():
    rows = {row[0].strip("`"): row for row in find_tables(REFERENCE / "settings.md", "Settings")}
    fields = Settings.__dataclass_fields__
    assert list(rows) == list(fields)
    defaults = {name: ast.literal_eval(row[1].strip("`")) for name, row in rows.items() if name != "files_dir"}
    assert defaults == {name: field.default for name, field in fields.items() if name != "files_dir"}
    assert all(unit and meaning for _, _, unit, meaning in rows.values())


def test_every_error_is_listed_with_its_code_and_base():
    def find_subclasses(error: type[errors.DagabaazError]) -> list[type[errors.DagabaazError]]:
        return [error, *(found for child in error.__subclasses__() for found in find_subclasses(child))]

    rows = {
        row[0].strip("`"): (row[1].strip("`"), row[2].strip("`"))
        for row in find_tables(REFERENCE / "errors.md", "Errors")
    }
    known = {error.code: error for error in find_subclasses(errors.DagabaazError)}
    assert {code: name for code, (name, _) in rows.items()} == {code: error.__name__ for code, error in known.items()}
    for code, (_, base) in rows.items():
        assert not base or base in {parent.__name__ for parent in known[code].__mro__}


def test_a_runs_error_is_listed():
    names = read_names("errors.md", "Errors of a run")
    assert names[: len(RunError.__dataclass_fields__)] == list(RunError.__dataclass_fields__)


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("DagNode", models.DagNode),
        ("EdgeFilter", models.EdgeFilter),
        ("FilterRule", models.FilterRule),
        ("NodeSource", models.NodeSource),
        ("ConfigSource", models.ConfigSource),
        ("RuntimeSource", models.RuntimeSource),
        ("ExpressionSource", models.ExpressionSource),
        ("TaskArtifact", models.TaskArtifact),
        ("Pipeline", Pipeline),
    ],
)
def test_every_field_of_a_definition_is_listed_with_its_default(heading: str, model: type[BaseModel]):
    rows = {
        row[0].strip("`"): row[1].strip("`")
        for row in find_tables(REFERENCE / "pipelines.md", heading)
        if len(row) == 3
    }
    assert set(rows) == set(model.model_fields)
    for name, field in model.model_fields.items():
        shown = str(field.default) if isinstance(field.default, enum.Enum) else repr(field.default)
        expected = "" if field.is_required() else shown.replace("'", '"')
        assert rows[name].removeprefix("FanMode.").lower() == expected.lower(), name


def test_every_method_of_a_pipeline_that_is_listed_is_there():
    methods = [row[0] for row in find_tables(REFERENCE / "pipelines.md", "Pipeline") if len(row) == 2]
    for name in re.findall(r"`(\w+)\(", "".join(methods)):
        assert callable(getattr(Pipeline, name))


def test_every_option_of_a_plugin_is_listed():
    from dagabaaz_celery.app import Dagabaaz

    keyword_only = [
        parameter.name
        for parameter in inspect.signature(Dagabaaz.plugin).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    assert read_names("plugins.md", "dag.plugin") == keyword_only


def test_every_member_of_a_context_is_listed():
    fields = set(PluginContext.__dataclass_fields__) - {
        "scratch_path",
        "emit_artifact",
        "report_progress",
        "ask_cancelled",
        "ask_run",
    }
    members = {name for name in public_names(PluginContext) if name not in PluginContext.__dataclass_fields__}
    assert set(read_names("plugins.md", "PluginContext")) == fields | members


def test_every_member_of_the_app_object_and_of_a_run_is_listed():
    from dagabaaz_celery.app import Dagabaaz

    assert set(read_names("runs.md", "Dagabaaz")) == public_names(Dagabaaz) - {"embedded"}
    assert set(read_names("runs.md", "Run")) == public_names(Run) | {"id"}


def test_what_a_deletion_reports_is_listed():
    assert set(read_names("runs.md", "PruneReport")) == {*PruneReport.__dataclass_fields__, *public_names(PruneReport)}


def test_every_key_of_retention_is_listed():
    assert {*read_names("settings.md", "Retention")} == {*RUN_TERMINAL_STATUSES, "keys"}


def test_every_member_of_actions_and_flows_is_listed():
    from dagabaaz_celery.flow import DagaAction, DagaFlow

    made_with_it = {"dag", "pipeline", "generations", "slugs"}
    assert set(read_names("flows.md", "DagaFlow")) == public_names(DagaFlow) | made_with_it
    made_with_it = {"is_decorator_action", "wrapped_func"}
    assert set(read_names("flows.md", "DagaAction")) == public_names(DagaAction) | made_with_it


@pytest.mark.parametrize("snapshot", [RunSnapshot, NodeSnapshot, TaskSnapshot])
def test_every_field_of_a_snapshot_is_listed(snapshot: Any):
    assert set(read_names("runs.md", snapshot.__name__)) == set(snapshot.__dataclass_fields__)


PIPES = find_tables(REFERENCE / "expressions.md", "Pipes")


def test_every_pipe_is_listed_with_the_number_of_its_arguments():
    assert [row[0].strip("`") for row in PIPES] == list(BUILTIN_PIPES)
    for name, arguments, *_ in PIPES:
        shown = [argument for argument in re.split(r", (?![^(]*\))", arguments) if argument]
        required = [argument for argument in shown if "(" not in argument]
        assert (len(required), len(shown)) == PIPE_ARITY[name.strip("`")]


@pytest.mark.parametrize("row", [pytest.param(row, id=row[0]) for row in PIPES])
def test_the_example_of_a_pipe_gives_what_it_says(row: list[str]):
    namespace: dict[str, Any] = {}
    exec(find_blocks(REFERENCE / "expressions.md", "python")[0].code, namespace)
    example, expected = row[3].strip("`"), row[4].strip("`")
    assert row[0].strip("`") in example
    assert namespace["evaluate"](example) == ast.literal_eval(expected)


OPERATORS = find_tables(REFERENCE / "edge-filters.md", "Operators")


def test_every_operator_is_listed():
    assert [row[0].strip("`") for row in OPERATORS] == list(FilterOperator)


@pytest.mark.parametrize("row", [pytest.param(row, id=row[0]) for row in OPERATORS])
def test_the_example_of_an_operator_holds_as_it_says(row: list[str]):
    operator, _, field, value, holds = (cell.strip("`") for cell in row)
    artifact = TaskArtifact(metadata={"field": ast.literal_eval(field)})
    rule = FilterRule(field="field", operator=FilterOperator(operator), value=ast.literal_eval(value))
    assert bool(filter_artifacts([artifact], EdgeFilter(rules=[rule]))) is ast.literal_eval(holds)


def test_extensions_have_the_file_type_that_is_listed():
    rows = {row[0].strip("`"): row[1].split() for row in find_tables(REFERENCE / "edge-filters.md", "File types")}
    assert set(rows) == set(FileType) - {FileType.OTHER}
    for file_type, extensions in rows.items():
        rule = FilterRule(field="file_type", operator=FilterOperator.EQ, value=file_type)
        files = [TaskArtifact(file_name=f"file{extension}") for extension in extensions]
        assert filter_artifacts(files, EdgeFilter(rules=[rule])) == files


def test_every_setting_and_model_of_the_django_app_is_named():
    app = ROOT / "dagabaaz_celery" / "contrib" / "django"
    page = ROOT / "docs" / "howto" / "django.md"
    source = "".join(path.read_text(encoding="utf-8") for path in app.glob("*.py"))
    named = {row[0].strip("`") for row in find_tables(page, "Settings")}
    assert named == set(re.findall(r'getattr\(settings, "(DAGABAAZ_\w+)"', source))
    shown = page.read_text(encoding="utf-8")
    for model in re.findall(
        r"^class (\w+)\(StoreModel\)", (app / "models.py").read_text(encoding="utf-8"), re.MULTILINE
    ):
        assert f"`{model}`" in shown


def test_every_state_is_listed():
    page = REFERENCE / "states.md"
    runs = {row[0].strip("`"): (row[2] == "yes", row[3] == "yes") for row in find_tables(page, "Runs")}
    assert runs == {status: (status in RUN_TERMINAL_STATUSES, status in RUN_RETRYABLE_STATUSES) for status in RunStatus}
    tasks = {row[0].strip("`"): row[2] == "yes" for row in find_tables(page, "Tasks")}
    assert tasks == {status: status in TASK_TERMINAL_STATUSES for status in TaskStatus}
    assert read_names("states.md", "Nodes") == list(NODE_STATUSES)
    assert read_names("states.md", "Rollbacks") == list(get_args(RollbackStatus))


@pytest.mark.parametrize("protocol", [store.DagStore, store.TaskInputStore, store.DagRetryStore])
def test_every_method_of_a_store_is_listed(protocol: type):
    assert set(read_names("stores.md", protocol.__name__)) == public_names(protocol)


def test_every_table_is_listed_with_its_columns():
    tables = build_tables()
    page = REFERENCE / "tables.md"
    headings = re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert {f"{tables.prefix}{heading}" for heading in headings} == set(tables.metadata.tables)
    for heading in headings:
        columns = tables.metadata.tables[f"{tables.prefix}{heading}"].columns
        assert set(read_names("tables.md", heading)) == set(columns.keys()), heading


def test_every_check_of_the_doctor_is_listed_with_what_it_asks():
    from dagabaaz_celery.cli.doctor import doctor
    from dagabaaz_celery.doctor import CHECKS, RUNS_CHECK, Finding, Level

    rows = {row[0].strip("`"): row[1:] for row in find_tables(REFERENCE / "doctor.md", "Checks")}
    assert {name: row[0] for name, row in rows.items()} == {check.name: check.asks for check in (*CHECKS, RUNS_CHECK)}
    assert {row[1] for row in rows.values()} <= set(Level)
    assert read_names("doctor.md", "Levels") == list(Level)
    assert read_names("doctor.md", "Finding") == list(Finding.__dataclass_fields__)
    options = {option for parameter in doctor.params for option in parameter.opts} - {"--help"}
    assert {name.split()[0] for name in read_names("doctor.md", "Options")} >= options


def test_every_command_is_listed_with_its_options():
    context = click.Context(dagabaaz, info_name="dagabaaz")
    assert read_names("cli.md", "Commands") == list(COMMANDS)
    for name in COMMANDS:
        command = dagabaaz.get_command(context, name)
        options = {option for one in command.params if isinstance(one, click.Option) for option in one.opts}
        assert {each.split()[0] for each in read_names("cli.md", name)} == options, name


def test_every_exit_code_is_listed():
    assert [int(code) for code in read_names("cli.md", "Exit codes")] == sorted(ExitCode)


def test_pages_of_the_reference_are_all_checked_here():
    checked = Path(__file__).read_text(encoding="utf-8")
    assert all(page.name in checked for page in REFERENCE.glob("*.md"))


def test_every_attribute_instrument_and_sweep_action_is_listed():
    """By the words in the code that names them."""
    package = ROOT / "dagabaaz_celery"
    source = "".join(path.read_text() for path in (package / "contrib" / "otel").glob("*.py"))
    named = set(re.findall(r'"(dagabaaz\.[a-z.]+)"', source))
    listed = {
        *read_names("telemetry.md", "Attributes of spans"),
        *read_names("telemetry.md", "Metrics"),
        "dagabaaz.queue",
        "dagabaaz.action",
    }
    assert listed == named

    worker = "".join((package / "worker" / name).read_text() for name in ("sweeper.py", "runtime.py", "resend.py"))
    noted = set(re.findall(r'(?:_note\(|"swept", )"([a-z_]+)"', worker))
    owed = {kind for kind in OWED_KINDS if kind != "callback"}  # those are noted by their kind
    assert set(read_names("telemetry.md", "Sweep actions")) == noted | owed


def test_everything_for_tests_is_listed():
    assert set(read_names("testing.md", "Names")) == set(testing.__all__)
    assert read_names("testing.md", "Arguments of run_inline") == list(inspect.signature(testing.run_inline).parameters)
    fields = {name for name in testing.InlineRun.__dataclass_fields__ if not name.startswith("_")}
    assert set(read_names("testing.md", "InlineRun")) == fields | public_names(testing.InlineRun) - fields
    assert set(read_names("testing.md", "Clock")) == public_names(testing.Clock)
    rows = {
        row[0].strip("`").partition("(")[0]: row[0].strip("`") for row in find_tables(REFERENCE / "testing.md", "Names")
    }
    for name, shown in rows.items():
        found = getattr(testing, name)
        if "(" in shown and inspect.isfunction(found):
            parameters = inspect.signature(found).parameters
            assert re.findall(r"[(, *]([a-z_]+)(?=[=,)])", shown) == list(parameters), name


def test_what_pytest_offers_is_listed():
    fixtures = {name for name, found in vars(pytest_plugin).items() if "fixture" in type(found).__name__.lower()}
    assert set(read_names("testing.md", "pytest")) == {*fixtures, "--dagabaaz-update-golden"}
