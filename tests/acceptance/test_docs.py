"""README and docs are true: their code runs and prints what they say, their commands and links lead somewhere.

A page is followed from top to bottom in an empty folder. A block of Python, YAML, JSON or HTML whose first line is a
comment with a file's name is saved under it. Commands of a ``console`` block are typed; a worker and a web server go on
in the background.
Other Python runs here, with a worker in this process where it starts a run. What is printed must be what the output
below a command, or the next ``text`` block, shows.

The how-to guides are followed as docs/README.md says: their files are put together, real workers import the module, and
``try_it.py`` is the client, in a process of its own.
"""

import ast
import contextlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celery._state
import click
import pytest
from celery import Celery
from celery.bin.celery import celery as celery_command
from markdown_pages import PAGES, ROOT, Block, find_anchors, find_blocks, find_links

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.pipeline import Pipeline
from dagabaaz_celery.testing import embedded_worker

#: How-to guides that are not about a worker and a client; they are followed like any other page.
OTHER_GUIDES = {"test-your-pipelines.md", "migrate.md", "django.md", "django-pages.md"}
GUIDES = [page for page in PAGES if page.parent.name == "howto" and page.name not in OTHER_GUIDES]
PAGES_WITH_CODE = [page for page in PAGES if find_blocks(page, "python") and page not in GUIDES]
#: Servers that a reader has, and what a test has in their place.
SERVERS = {
    "redis://localhost:6379/0": "memory://localhost/",
    "sqlite:////tmp/shop-runs.sqlite3": "sqlite:///runs.sqlite3",
    "postgresql+psycopg://shop@db.internal/shop": "sqlite:///runs.sqlite3",
}
#: The same where processes of their own use them; what else is configured there, the embedded broker replaces.
EMBEDDED = {
    'app = Celery("shop", broker="redis://localhost:6379/0")': 'app = Celery("shop")',
    "dag = Dagabaaz(app)": "dag = Dagabaaz.embedded(app)",
}
#: The broker of a Django project, where its settings are a file of the page: one that processes share.
DJANGO_BROKER = """CELERY_BROKER_URL = f"dagabaaz://{BASE_DIR / 'broker.sqlite3'}"
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
from kombu.transport import TRANSPORT_ALIASES
TRANSPORT_ALIASES["dagabaaz"] = "dagabaaz_celery.brokers.transport:Transport"
"""
#: What starts a run or has it go on: from there on a block gets a worker.
NEEDS_WORKER = re.compile(r"\.(start|wait|retry|resume|send_task|delay)\(")
#: Commands that prepare the reader's machine; they are only checked for being there.
NOT_TYPED = {"git", "make", "pip", "python3", "redis-server", "source"}


def name_page(page: Path) -> str:
    return str(page.relative_to(ROOT))


def matches(printed: str, expected: str) -> bool:
    """Whether the text is what a page shows, where ``...`` stands for anything."""
    pattern = re.escape(expected.strip()).replace(re.escape("..."), r"[\s\S]*?")
    return re.fullmatch(pattern, printed.strip()) is not None


def read_commands(block: Block) -> list[tuple[str, str]]:
    """Each command of a console block with the output shown below it."""
    parts = re.split(r"^\$ (.+)\n", block.code, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def is_for_worker(words: list[str]) -> bool:
    """Whether a command starts a worker, or Flower, which goes on beside one."""
    return words[0] == "celery" and not {"worker", "flower"}.isdisjoint(words)


def is_for_server(words: list[str]) -> bool:
    """Whether a command starts Django's web server, which goes on beside a worker."""
    return words[1:] == ["manage.py", "runserver"]


def use_substitutes(path: Path) -> None:
    """Have a file of a page do without the servers that it names."""
    source = path.read_text(encoding="utf-8")
    source = source.replace('CELERY_BROKER_URL = "redis://localhost:6379/0"\n', DJANGO_BROKER)
    for server, substitute in SERVERS.items():
        source = source.replace(server, substitute)
    path.write_text(source, encoding="utf-8")


def use_embedded_servers(module: Path) -> None:
    """Have a page's module do without the servers that it names."""
    source = module.read_text(encoding="utf-8")
    for written, replacement in EMBEDDED.items():
        source = source.replace(written, replacement)
    module.write_text(source, encoding="utf-8")


# Following a page ---------------------------------------------------------------------------------------------------


class Interpreter:
    """Runs a page's Python, in one namespace."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"__name__": "media"}
        self._needs_worker = NEEDS_WORKER

    def run(self, block: Block) -> str:
        """Run the statements one by one, with a worker from the first on that needs one; what they printed."""
        source = block.code
        for server, substitute in SERVERS.items():
            source = source.replace(server, substitute)
        printed = io.StringIO()
        with contextlib.ExitStack() as workers, contextlib.redirect_stdout(printed):
            has_worker = False
            for statement in ast.parse(source).body:
                if not has_worker and self._is_for_worker(statement, source):
                    has_worker = True
                    workers.enter_context(embedded_worker(self._find_app(source)))
                ast.increment_lineno(statement, block.line - 1)
                exec(compile(ast.Module([statement], []), str(block.page), "exec"), self.names)
        return printed.getvalue()

    def _is_for_worker(self, statement: ast.stmt, source: str) -> bool:
        """Whether a statement starts a run or has it go on, itself or by a function defined above."""
        found = self._needs_worker.search(ast.get_source_segment(source, statement) or "") is not None
        if found and isinstance(statement, ast.FunctionDef):
            self._needs_worker = re.compile(rf"{self._needs_worker.pattern}|\b{statement.name}\(")
            return False
        return found

    def _find_app(self, source: str) -> Celery:
        """The app whose Dagabaaz the block names; Celery can run the worker of one app at a time in a process."""
        named = [name for name, value in self.names.items() if isinstance(value, Dagabaaz) and f"{name}." in source]
        return self.names[named[-1] if named else "dag"].app


class Terminal:
    """Types a page's commands in one folder; workers go on in the background until the next one, or the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workers: list[subprocess.Popen[bytes]] = []
        # The programs beside this interpreter come first, as in an activated environment.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "NO_COLOR": "1"}

    def type(self, command: str) -> str:
        """Run a command to its end and give its output; start a worker and give nothing."""
        words = shlex.split(command, comments=True)
        if is_for_worker(words):
            self.stop_workers()
        if is_for_worker(words) or is_for_server(words):
            self.start_worker(words)
            return ""
        process = self._start(["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            output, _ = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert process.returncode == 0, f"{command}\n{output.decode()}\n{self.read_log()}"
        return output.decode()

    def read_log(self) -> str:
        """What the workers said, for when something went wrong."""
        log = self.folder / "worker.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def start_worker(self, words: list[str]) -> None:
        """Start a worker beside those that run."""
        with (self.folder / "worker.log").open("ab") as log:
            self.workers.append(self._start(words, stdout=log, stderr=log))

    def stop_workers(self) -> None:
        """End the workers, as Ctrl-C does."""
        for worker in self.workers:
            worker.send_signal(signal.SIGINT)
        for worker in self.workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(10)
        self.close()

    def close(self) -> None:
        """End the workers at once, with their pools."""
        for worker in self.workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        self.workers.clear()

    def _start(self, words: list[str], **streams: Any) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            words, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, start_new_session=True, **streams
        )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, whose modules can be imported and are forgotten afterwards, as are its apps' tasks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)  # it would outrank every broker that a page names
    # Celery gives every task of one app to all apps of the process that are finalized later.
    monkeypatch.setattr(celery._state, "_on_app_finalizers", set(celery._state._on_app_finalizers))
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def terminal(folder: Path) -> Iterator[Terminal]:
    opened = Terminal(folder)
    yield opened
    opened.close()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES_WITH_CODE, ids=name_page)
def test_a_page_can_be_followed(page, terminal):
    interpreter = Interpreter()
    place, printed = "", ""
    for block in find_blocks(page):
        if block.file_name is not None:
            block.save(terminal.folder)
            use_substitutes(terminal.folder / block.file_name)
        elif block.language == "python":
            terminal.stop_workers()
            place, printed = block.place, interpreter.run(block)
        elif block.language == "text":
            assert matches(printed, block.code), f"{place} prints\n{printed}"
        elif block.language == "console":
            for command, expected in read_commands(block):
                if shlex.split(command)[0] not in NOT_TYPED:
                    output = terminal.type(command)
                    assert matches(output, expected), f"{block.place}: {command}\n{output}\n{terminal.read_log()}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", GUIDES, ids=name_page)
def test_a_guide_works_with_a_worker_and_a_client_of_its_own(page, terminal):
    """Given the page's files, and its workers, when the client runs, then it prints what the page shows."""
    client, shown, module = [], [], ""
    for block in find_blocks(page, "python", "yaml", "json", "text"):
        if block.file_name is not None:
            block.save(terminal.folder)
            module = module or (block.file_name.removesuffix(".py") if block.language == "python" else "")
        else:
            (shown if block.language == "text" else client).append(block.code)
    use_embedded_servers(terminal.folder / f"{module}.py")
    (terminal.folder / "try_it.py").write_text("\n".join([f"from {module} import *\n", *client]), encoding="utf-8")

    commands = [command for block in find_blocks(page, "console") for command in read_commands(block)]
    workers = [words for command, _ in commands if is_for_worker(words := shlex.split(command))]
    for words in workers or [["celery", "-A", module, "worker"]]:
        terminal.start_worker(words)
    printed = terminal.type("python try_it.py")
    assert matches(printed, "".join(shown)), f"{printed}\n{terminal.read_log()}"
    for command, expected in commands:
        words = shlex.split(command)
        if words not in workers and words[0] not in NOT_TYPED:
            assert matches(output := terminal.type(command), expected), output


def test_what_workers_import_starts_no_run():
    for block in (block for page in GUIDES for block in find_blocks(page, "python") if block.file_name is not None):
        at_import = [node for node in ast.parse(block.code).body if not isinstance(node, ast.FunctionDef)]
        assert not [node for node in at_import if NEEDS_WORKER.search(ast.unparse(node))], block.place


def test_every_guide_says_which_file_is_which():
    for page in GUIDES:
        assert "../README.md#how-to-guides" in find_links(page), page


def test_every_extra_is_named():
    page = (ROOT / "docs" / "howto" / "add-to-an-existing-app.md").read_text(encoding="utf-8")
    assert all(f"`{extra}`" in page for extra in read_extras())


# What is only checked -----------------------------------------------------------------------------------------------

ALL_COMMANDS = [
    pytest.param(command, id=f"{block.place}-{command[:40]}")
    for page in PAGES
    for block in find_blocks(page, "console")
    for command, _ in read_commands(block)
]


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_a_command_names_what_there_is(command):
    for part in command.split("&&"):
        check_command(shlex.split(part, comments=True))


def check_command(words: list[str]) -> None:
    match words:
        case ["make", *arguments]:
            targets = {argument for argument in arguments if "=" not in argument}
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            assert targets <= set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
        case ["pip", "install", *arguments]:
            check_extras(arguments)
        case ["celery", *arguments]:
            check_options(celery_command, arguments)
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module), module
        case ["cd", *_]:
            pass
        case [program, *_]:
            assert program in NOT_TYPED or shutil.which(program), program


def read_extras() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return set(project["optional-dependencies"])


def check_extras(arguments: list[str]) -> None:
    for argument in arguments:
        found = re.fullmatch(r"\.{1,2}/dagabaaz-celery(?:\[([\w,]+)\])?", argument)
        assert found or argument == "pytest", argument
        assert found is None or set((found[1] or "all").split(",")) <= read_extras()


def check_options(command: click.Command, arguments: list[str]) -> None:
    """Every option is one of the command's, or of the subcommand's behind it."""
    known = {option for parameter in command.params for option in parameter.opts}
    for position, argument in enumerate(arguments):
        if isinstance(command, click.Group) and argument in command.list_commands(click.Context(command)):
            check_options(command.get_command(click.Context(command), argument), arguments[position + 1 :])
            return
        assert not argument.startswith("-") or argument.partition("=")[0] in known, argument


PIPELINES = [pytest.param(block, id=block.place) for page in PAGES for block in find_blocks(page, "yaml", "json")]


@pytest.mark.parametrize("block", PIPELINES)
def test_a_pipeline_in_a_text_format_is_one(block):
    pipeline = Pipeline.from_yaml(block.code) if block.language == "yaml" else Pipeline.from_json(block.code)
    pipeline.check()
    assert Pipeline.from_yaml(pipeline.to_yaml()) == pipeline


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_links_within_the_repository_lead_somewhere(page):
    for link in find_links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in find_anchors(target), link


def test_every_page_is_reached_from_the_readme():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        linked = ((page.parent / link.partition("#")[0]).resolve() for link in find_links(page))
        waiting += [target for target in linked if target in PAGES and target not in reached]
    assert set(PAGES) - reached == set()


def test_code_is_in_a_language_that_is_checked():
    languages = {block.language for page in PAGES for block in find_blocks(page)}
    assert languages <= {"python", "text", "console", "yaml", "json", "mermaid", "html"}
