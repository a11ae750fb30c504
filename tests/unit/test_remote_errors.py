"""Exceptions of workers are made again from what was stored of them, and from nothing else."""

import json
import sys
import types
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagabaaz_celery.errors import RemoteActionError, ResultError
from dagabaaz_celery.remote_errors import rebuild_error
from dagabaaz_celery.run import RunError
from dagabaaz_celery.worker.outcome import describe_error


class OutOfStock(Exception):
    class Forever(Exception):
        """Nested."""


class Worded(Exception):
    """Makes its text of what it is given, and keeps that text alone."""

    def __init__(self, count: int) -> None:
        super().__init__(f"{count} are left")


class Pickled(Exception):
    """As Worded; but it tells pickle what it was given."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(f"{count} are left")

    def __reduce__(self) -> Any:
        return type(self), (self.count,)


class Greedy(Exception):
    """Takes more than it keeps."""

    def __init__(self, message: str, count: int) -> None:
        super().__init__(message)


class Unreadable(Exception):
    def __reduce__(self) -> Any:
        raise ValueError("no")


def store(error: BaseException, redact: Any = str) -> RunError:
    """What a client reads of an exception in a worker."""
    stored = json.loads(json.dumps(asdict(describe_error(error, redact))))
    return RunError(**stored, node="root", task_id="task")


def rebuild(error: BaseException) -> Exception:
    return rebuild_error(store(error), "DagaAction(root)")


@pytest.mark.parametrize(
    "error",
    [
        OutOfStock("none left", 3, {"item": ["tea"]}),
        OutOfStock(),
        OutOfStock.Forever("never"),
        ValueError("a", None, True, 1.5),
        KeyError("name"),
        FileNotFoundError(2, "No such file", "tea.txt"),
        Pickled(3),
        ResultError("it is a set"),
        StopIteration(1),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_is_made_again(error):
    rebuilt = rebuild(error)
    assert type(rebuilt) is type(error)
    assert (str(rebuilt), rebuilt.args) == (str(error), error.args)


def test_its_traceback_in_the_worker_is_a_note():
    def sell() -> None:
        raise OutOfStock("none left")

    with pytest.raises(OutOfStock) as caught:
        sell()
    rebuilt = rebuild(caught.value)
    (note,) = rebuilt.__notes__
    assert note.startswith("DagaAction(root), in a worker:\nTraceback (most recent call last):")
    assert 'raise OutOfStock("none left")' in note


class Local:
    @staticmethod
    def make() -> Exception:
        class Hidden(Exception): ...

        return Hidden("x")


@pytest.mark.parametrize(
    "error",
    [
        Worded(3),
        Greedy("x", 1),
        Unreadable("x"),
        Local.make(),
        OutOfStock({1}),
        OutOfStock((1, 2)),
        OutOfStock("x" * 5000),
        OutOfStock([[[[[[[[[[1]]]]]]]]]]),
        ExceptionGroup("several", [ValueError("a")]),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
        SystemExit(3),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_one_that_cannot_be_made_again_is_named(error):
    rebuilt = rebuild(error)
    assert isinstance(rebuilt, RemoteActionError)
    assert (rebuilt.type, rebuilt.node) == (type(error).__name__, "root")
    assert f"DagaAction(root) ended with {type(error).__name__}: {str(error)[:4000]}" in str(rebuilt)
    assert type(error).__name__ in rebuilt.traceback


def test_what_an_older_release_stored_is_named():
    rebuilt = rebuild_error(RunError("ValueError", "no", "trace", "root", "task"), "DagaAction(root)")
    assert isinstance(rebuilt, RemoteActionError)
    assert rebuilt.__notes__ == ["DagaAction(root), in a worker:\ntrace"]


def test_an_end_without_an_exception_is_named():
    rebuilt = rebuild_error(RunError("Cancelled", "by the app", "", None, None), None)
    assert str(rebuilt) == "[DGB408] The run ended with Cancelled: by the app"
    assert not hasattr(rebuilt, "__notes__")


def test_arguments_that_show_a_secret_are_not_kept():
    def redact(text: str) -> str:
        return text.replace("hunter2", "<secret>").replace('hu\\"nter', "<secret>")

    for secret in ("hunter2", 'hu"nter'):
        stored = store(OutOfStock("shown", {"password": [secret]}), redact)
        assert stored.args is None
        assert secret not in json.dumps(asdict(stored))
    assert store(OutOfStock("shown"), redact).args == ["shown"]


# What somebody who can write the store could try ---------------------------------------------------------------------

called: list[Any] = []


class Trap:
    """No exception, and what is called with the store's arguments would be noted."""

    def __init__(self, *args: Any) -> None:
        called.append(args)


class Liar(Exception):
    """Gives something else than itself."""

    def __new__(cls, *args: Any) -> Any:
        return Exception.__new__(ValueError, *args) if args == ("lie",) else Exception.__new__(cls, *args)


def trap(*args: Any) -> None:
    called.append(args)


alias = OutOfStock


@pytest.mark.parametrize(
    ("module", "qualname"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("subprocess", "Popen"),
        ("builtins", "SystemExit"),
        ("builtins", "BaseException"),
        (__name__, "trap"),
        (__name__, "Trap"),
        (__name__, "alias"),
        (__name__, "OutOfStock.mro"),
        (__name__, "OutOfStock.__class__"),
        (__name__, "OutOfStock.__init__"),
        (__name__, "OutOfStock."),
        (__name__, "Liar"),
        (__name__, ""),
        ("", ""),
        ("not_there", "Error"),
        ("sys", "modules.os"),
    ],
)
def test_nothing_but_a_class_of_exceptions_is_called(module, qualname):
    error = RunError("X", "lie", "", "root", "task", module=module, qualname=qualname, args=["lie"])
    assert isinstance(rebuild_error(error, "root"), RemoteActionError)
    assert called == []


@pytest.mark.parametrize("args", [None, {}, "abc", 3])
def test_arguments_that_are_no_list_are_not_used(args):
    error = RunError("ValueError", "a", "", None, None, module="builtins", qualname="ValueError", args=args)
    assert isinstance(rebuild_error(error, "root"), RemoteActionError)


def test_no_module_is_imported(tmp_path, monkeypatch):
    (tmp_path / "evil_errors.py").write_text("class Evil(Exception): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    error = RunError("Evil", "x", "", None, None, module="evil_errors", qualname="Evil", args=["x"])
    assert isinstance(rebuild_error(error, "root"), RemoteActionError)
    assert "evil_errors" not in sys.modules


def test_a_module_that_makes_its_names_when_asked_is_not_asked(monkeypatch):
    lazy = types.ModuleType("lazy_errors")
    lazy.__getattr__ = trap  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "lazy_errors", lazy)
    error = RunError("E", "x", "", None, None, module="lazy_errors", qualname="E", args=["x"])
    assert isinstance(rebuild_error(error, "root"), RemoteActionError)
    assert called == []


short = st.text(max_size=5)
anything = st.recursive(st.none() | st.integers() | short, lambda values: st.lists(values, max_size=3), max_leaves=5)
QUALNAMES = ["Error", "ValueError", "Exception", "__doc__", "OutOfStock.Forever", "OSError.__new__"]


@given(
    st.builds(
        RunError,
        type=short,
        message=short,
        traceback=short,
        node=st.none() | short,
        task_id=st.none(),
        module=st.sampled_from([*sys.modules, __name__]) | st.text(max_size=9),
        qualname=st.sampled_from(QUALNAMES),
        args=anything,
    )
)
def test_whatever_the_store_says_an_exception_comes_of_it(error):
    assert isinstance(rebuild_error(error, "root"), Exception)
