"""Actions and flows as objects: what may be made of them, and what is refused. Nothing is run by a worker here."""

import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import networkx as nx
import pytest
from celery import Celery

from dagabaaz_celery import actions as actions_module
from dagabaaz_celery import app as app_module
from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.errors import ActionConflict, ConfigurationError, PipelineError, RunInputError
from dagabaaz_celery.flow import DagaAction, DagaFlow


@pytest.fixture
def dag() -> Dagabaaz:
    return Dagabaaz(Celery("shop", broker="memory://localhost/", set_as_current=False))


@pytest.fixture(autouse=True)
def no_actions_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins with a process that knows no action."""
    monkeypatch.setattr(actions_module, "_actions", {})


async def root(predecessors_results: list[int]) -> int:
    """The root."""
    return sum(predecessors_results) + 1


async def left(predecessors_results: list[int]) -> int:
    return sum(predecessors_results) + 2


async def right(predecessors_results: list[int]) -> int:
    return sum(predecessors_results) + 3


async def untyped(predecessors_results):
    return predecessors_results


def synchronous(predecessors_results: list[int]) -> int:
    return sum(predecessors_results)


# Actions -------------------------------------------------------------------------------------------------------------


def run(awaitable: Any) -> Any:
    """The outcome of a coroutine that waits for nothing."""
    try:
        awaitable.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits for something")


@pytest.mark.parametrize("decorator", [DagaAction, DagaAction[int, int]], ids=["bare", "subscripted"])
def test_a_decorated_function_is_an_action_that_can_be_awaited(decorator):
    action = decorator(root)
    assert run(action([1, 2])) == 4
    assert run(action(predecessors_results=[1])) == 2
    assert (repr(action), str(action), action.__name__) == ("DagaAction(root)", "DagaAction(root)", "root")
    assert action.__doc__ == "The root."
    assert {action: 1}[action] == 1
    assert action.is_decorator_action
    assert action.wrapped_func is root


def test_a_class_with_an_async_call_is_an_action():
    class Reserve(DagaAction[set[str], int]):
        """Reserves."""

        async def __call__(self, predecessors_results: list[set[str]]) -> int:
            return len(predecessors_results[0])

    action = Reserve()
    assert run(action([{"a", "b"}])) == 2
    assert (repr(action), action.__doc__) == ("DagaAction(Reserve)", "Reserves.")
    assert not action.is_decorator_action
    assert (action.takes.hint, action.gives.hint) == (set[str], int)


def test_an_action_called_with_nothing_gets_none():
    assert run(DagaAction(untyped)()) is None


class NoCall(DagaAction[int, int]):
    pass


class SyncCall(DagaAction[int, int]):
    def __call__(self, predecessors_results: list[int]) -> int:
        return 1


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: DagaAction(synchronous), "takes an async function"),
        (lambda: DagaAction("root"), "takes an async function, and 'root' is none"),
        (lambda: DagaAction(DagaAction(root)), "takes an async function"),
        (DagaAction, "got no function"),
        (NoCall, "The action NoCall has no async method __call__"),
        (SyncCall, "The action SyncCall has no async method __call__"),
    ],
)
def test_what_is_not_async_is_no_action(make, problem):
    with pytest.raises(PipelineError, match=problem):
        make()


def test_a_class_with_an_init_is_refused():
    with pytest.raises(PipelineError, match="The action Reserve has an __init__ of its own"):

        class Reserve(DagaAction[int, int]):
            def __init__(self, hotel: str) -> None: ...


def test_a_second_action_of_a_name_is_refused():
    @DagaAction
    async def action(predecessors_results): ...

    with pytest.raises(ActionConflict, match=r"DGB304.*There is an action '.*action' already"):

        @DagaAction
        async def action(predecessors_results): ...

    with pytest.raises(ActionConflict):
        DagaAction(action.wrapped_func)


def test_a_second_instance_of_an_actions_class_is_refused():
    class Only(DagaAction[int, int]):
        async def __call__(self, predecessors_results: list[int]) -> int: ...

    Only()
    with pytest.raises(ActionConflict):
        Only()


def test_lines_that_run_again_may_make_their_actions_again():
    def make_app() -> Any:
        @DagaAction
        async def action(predecessors_results): ...

        class Other(DagaAction[int, int]):
            async def __call__(self, predecessors_results: list[int]) -> int: ...

        return action, Other()

    assert make_app() != make_app()


# Rollbacks -----------------------------------------------------------------------------------------------------------


def test_a_function_is_registered_as_rollback():
    action = DagaAction(root)

    @action.register_function_as_rollback
    @DagaAction[int, int]
    async def undo(predecessors_results: list[int]) -> int:
        return predecessors_results[0] * 10

    assert isinstance(undo, DagaAction)
    assert action.rollback_action is undo
    assert run(action.rollback([3])) == 30


def test_a_plain_function_is_registered_as_rollback():
    action = DagaAction(root)
    undo = action.register_function_as_rollback(untyped)
    assert repr(undo) == "DagaAction(untyped)"


def test_a_class_is_registered_as_rollback():
    class Reserve(DagaAction[int, int]):
        async def __call__(self, predecessors_results: list[int]) -> int: ...

    @Reserve.register_class_as_rollback
    class Release(DagaAction[int, int]):
        async def __call__(self, predecessors_results: list[int]) -> None: ...

    assert repr(Release) == "DagaAction(Release)"
    assert Reserve().rollback_action is Release


def test_a_rollback_that_returns_nothing_gives_true():
    action = DagaAction(root)

    @action.register_function_as_rollback
    async def undo(predecessors_results: list[int]) -> None: ...

    assert run(action.rollback([3])) is True


def test_an_action_without_rollback_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        assert run(DagaAction(root).rollback([3])) is True
    assert "DagaAction(root) has no rollback" in caplog.text


def test_a_second_rollback_is_refused():
    action = DagaAction(root)
    action.register_function_as_rollback(left)
    with pytest.raises(ActionConflict, match=r"undone by DagaAction\(left\) already"):
        action.register_function_as_rollback(right)


def test_a_rollback_after_the_flow_is_refused(dag):
    action = DagaAction(root)
    DagaFlow(nx.DiGraph([(action, left)]), dag)
    with pytest.raises(PipelineError, match="comes too late"):
        action.register_function_as_rollback(right)


def test_a_rollback_for_a_class_after_the_flow_is_refused(dag):
    class Reserve(DagaAction[int, int]):
        async def __call__(self, predecessors_results: list[int]) -> int: ...

    DagaFlow(nx.DiGraph([(Reserve(), left)]), dag)
    with pytest.raises(PipelineError, match="comes too late"):
        Reserve.register_class_as_rollback(NoCall)


@pytest.mark.parametrize(
    ("register", "problem"),
    [
        (lambda action: action.register_function_as_rollback(synchronous), "is not an async function"),
        (lambda action: action.register_function_as_rollback(3), "of type int"),
        (lambda action: action.register_function_as_rollback(NoCall), "NoCall is the class of an action"),
        (lambda action: action.register_class_as_rollback(NoCall), "would undo every action"),
        (lambda action: DagaAction.register_class_as_rollback(NoCall), "would undo every action"),
        (lambda action: NoCall.register_class_as_rollback(left), "pass a subclass"),
    ],
)
def test_what_cannot_be_a_rollback_is_refused(register, problem):
    with pytest.raises(PipelineError, match=problem):
        register(DagaAction(root))


# Types ---------------------------------------------------------------------------------------------------------------


async def hinted(predecessors_results: "list[set[str]]") -> "dict[str, int]": ...
async def with_sequence(predecessors_results: Sequence[set[str]]) -> None: ...
async def bare_list(predecessors_results: list) -> Any: ...
async def nameless(predecessors_results: "list[NotThere]") -> int: ...  # noqa: F821


@pytest.mark.parametrize(
    ("action", "takes", "gives"),
    [
        (lambda: DagaAction(root), int, int),
        (lambda: DagaAction[set[str], "int | None"](untyped), set[str], int | None),
        (lambda: DagaAction[set[str], str](root), set[str], str),
        (lambda: DagaAction(untyped), Any, Any),
        (lambda: DagaAction(hinted), set[str], dict[str, int]),
        (lambda: DagaAction(with_sequence), set[str], type(None)),
        (lambda: DagaAction(bare_list), Any, Any),
    ],
)
def test_types_are_read_from_the_generics_or_else_from_the_annotations(action, takes, gives):
    made = action()
    assert (made.takes.hint, made.gives.hint) == (takes, gives)


class Unknown: ...


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: nameless, r"DagaAction\(nameless\) declares a type for its Input.*NotThere"),
        (lambda: DagaAction[int, Unknown](untyped), r"DagaAction\(untyped\) declares a type for its Output"),
        (lambda: DagaAction[int, "NotThere"](untyped), "NotThere"),
    ],
)
def test_a_type_that_cannot_be_carried_is_told_when_the_flow_is_made(dag, make, problem):
    with pytest.raises(PipelineError, match=problem):
        DagaFlow(nx.DiGraph([(left, make())]), dag)


# Flows ---------------------------------------------------------------------------------------------------------------


def test_a_flow_is_a_pipeline(dag):
    first, second = DagaAction(root), DagaAction(left)
    graph = nx.DiGraph()
    graph.add_nodes_from([first, second])
    graph.add_edges_from([(second, right), (first, right), (first, second)])
    flow = DagaFlow(graph, dag)
    assert [(node.slug, node.depends_on, node.fan_mode) for node in flow.pipeline.nodes] == [
        ("root", [], "aggregate"),
        ("left", ["root"], "aggregate"),
        ("right", ["left", "root"], "aggregate"),
    ]
    assert [node.plugin for node in flow.pipeline.nodes] == [f"{__name__}.{name}" for name in ("root", "left", "right")]
    assert dag.app.tasks[f"{__name__}.root"].__doc__ == "The root."
    assert flow.pipeline.name == f"{__name__}.root"
    assert [[action.__name__ for action in generation] for generation in flow.generations] == [
        ["root"],
        ["left"],
        ["right"],
    ]
    assert repr(flow) == f"DagaFlow('{__name__}.root', 3 actions)"
    dag.check()


def test_a_flow_has_the_name_that_it_is_given(dag):
    flow = DagaFlow(nx.DiGraph([(root, left)]), dag, name="booking")
    assert "booking" in dag._pipelines
    assert flow.pipeline.name == "booking"


def test_a_flow_may_be_made_twice_and_actions_may_be_in_several(dag):
    graph = nx.DiGraph([(root, left)])
    assert DagaFlow(graph, dag).pipeline == DagaFlow(graph, dag).pipeline
    DagaFlow(nx.DiGraph([(root, right)]), dag, name="another")


def test_two_flows_with_one_first_action_need_a_name(dag):
    DagaFlow(nx.DiGraph([(root, left)]), dag)
    with pytest.raises(PipelineError, match=r"Two different pipelines.*DagaFlow\(graph, name=\"...\"\)"):
        DagaFlow(nx.DiGraph([(root, right)]), dag)


def name_anew(action: DagaAction[Any, Any], name: str) -> DagaAction[Any, Any]:
    action.__name__ = action.__qualname__ = name
    return action


def test_slugs_are_valid_and_unique(dag):
    def make() -> Any:
        async def left(predecessors_results): ...

        return left

    names = nx.path_graph(
        [name_anew(DagaAction(root), "input"), left, make(), name_anew(DagaAction(right), "änderung")], nx.DiGraph
    )
    flow = DagaFlow(names, dag)
    assert [node.slug for node in flow.pipeline.nodes] == ["input_2", "left", "left_2", "_nderung"]
    assert flow.pipeline.nodes[2].plugin == f"{__name__}.test_slugs_are_valid_and_unique.<locals>.make.<locals>.left"
    dag.check()


def test_an_action_of_a_name_that_an_apps_task_has_is_refused(dag):
    def make() -> Any:
        @DagaAction
        async def action(predecessors_results): ...

        return action

    DagaFlow(nx.DiGraph([(make(), left)]), dag)
    with pytest.raises(ActionConflict, match="start the process again"):
        DagaFlow(nx.DiGraph([(make(), left)]), dag, name="second")


def test_task_options_are_those_of_every_task(dag):
    action = DagaAction(root)
    action.register_function_as_rollback(right)
    graph = nx.DiGraph([(action, left)])
    DagaFlow(graph, dag, queue="io", max_retries=7)
    for name in ("root", "root.rollback", "left"):
        task = dag.app.tasks[f"{__name__}.{name}"]
        assert (task.queue, task.max_retries, task.acks_late) == ("io", 7, True)
    with pytest.raises(ActionConflict, match="with other options"):
        DagaFlow(graph, dag, queue="another")
    with pytest.raises(ConfigurationError, match="did you mean queue"):
        DagaFlow(nx.DiGraph([(right, left)]), dag, queeu="io")


def test_without_networkx_the_import_says_what_to_install():
    code = "import sys; sys.modules['networkx'] = None; import dagabaaz_celery.flow"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "dagabaaz-celery[networkx]"' in done.stderr


def make_cycle() -> Any:
    return nx.DiGraph([(root, left), (left, right), (right, left)])


def make_graph_with(node: Any) -> Any:
    return nx.DiGraph([(root, node)])


@pytest.mark.parametrize(
    ("graph", "problem"),
    [
        (lambda: nx.DiGraph().add_edges_from([(root, left)]), "add_edges_from returns None"),
        (lambda: nx.Graph([(root, left)]), "of type Graph"),
        (lambda: nx.MultiDiGraph([(root, left)]), "of type MultiDiGraph"),
        (lambda: {root: [left]}, "of type dict"),
        (nx.DiGraph, "it has no nodes"),
        (make_cycle, "in a cycle, left -> right -> left: remove one"),
        (lambda: nx.DiGraph([(root, root)]), "in a cycle, root -> root"),
        (lambda: make_graph_with(synchronous), "node <function synchronous at .*> is not an async function"),
        (lambda: make_graph_with("left"), "node 'left' is of type str"),
        (lambda: make_graph_with(NoCall), r"NoCall is the class of an action: make its instance once, NoCall\(\)"),
    ],
)
def test_a_graph_that_cannot_run_is_refused(dag, graph, problem):
    with pytest.raises(PipelineError, match=problem):
        DagaFlow(graph(), dag)


def test_every_problem_of_a_graph_is_told_at_once(dag):
    graph = nx.DiGraph([(1, "a"), ("a", 1)])
    with pytest.raises(PipelineError) as caught:
        DagaFlow(graph, dag)
    assert len(caught.value.problems) == 3


def test_a_function_and_its_action_in_one_graph_are_refused(dag):
    with pytest.raises(PipelineError, match="twice"):
        DagaFlow(nx.DiGraph([(root, DagaAction(root))]), dag)


@pytest.fixture
def no_dags_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(app_module, "_all", type(app_module._all)())
    return


@pytest.mark.usefixtures("no_dags_before")
def test_the_only_dagabaaz_is_taken():
    dag = Dagabaaz(Celery("only", set_as_current=False))
    assert DagaFlow(nx.DiGraph([(root, left)])).dag is dag


@pytest.mark.usefixtures("no_dags_before")
def test_without_a_dagabaaz_a_flow_is_refused():
    with pytest.raises(ConfigurationError, match=r"Make dag = Dagabaaz\(app\) above it"):
        DagaFlow(nx.DiGraph([(root, left)]))


@pytest.mark.usefixtures("no_dags_before")
def test_with_several_a_flow_has_to_name_one():
    dags = [Dagabaaz(Celery(name, set_as_current=False)) for name in ("one", "two")]
    with pytest.raises(ConfigurationError, match=r"2 Dagabaaz objects \(of the apps 'one', 'two'\)"):
        DagaFlow(nx.DiGraph([(root, left)]))
    assert DagaFlow(nx.DiGraph([(root, left)]), dags[1]).dag is dags[1]


def test_tasks_of_a_main_module_are_called_as_workers_call_them(dag):
    action = DagaAction(root)
    action.__module__ = "__main__"
    assert DagaFlow(nx.DiGraph([(action, left)]), dag).pipeline.nodes[0].plugin == "shop.root"


# Input ---------------------------------------------------------------------------------------------------------------


def test_an_input_that_does_not_fit_is_refused(dag):
    flow = DagaFlow(nx.DiGraph([(DagaAction[set[str], int](root), left)]), dag)
    with pytest.raises(RunInputError, match=r"takes set\[str\], and the input does not fit: .*valid set"):
        flow.start([1])


def test_actions_that_receive_the_input_have_to_agree_on_its_type(dag):
    graph = nx.DiGraph([(DagaAction[set[str], int](root), right), (DagaAction[list[str], int](left), right)])
    with pytest.raises(RunInputError, match=r"DagaAction\(left\) takes list\[str\]"):
        DagaFlow(graph, dag).start({"a"})


def test_the_result_of_another_flows_action_is_refused(dag):
    flow = DagaFlow(nx.DiGraph([(root, left)]), dag)
    with pytest.raises(PipelineError, match=r"DagaAction\(right\) is no action of DagaFlow"):
        flow.result(None, DagaAction(right))
