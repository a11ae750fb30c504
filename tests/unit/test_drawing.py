"""Drawing: pipelines and runs as Mermaid, DOT, JSON and SVG."""

import itertools
import json
import random
import re
from dataclasses import dataclass, field
from xml.etree import ElementTree

import pytest

from dagabaaz_celery.drawing import (
    STATES,
    Drawing,
    DrawnNode,
    draw_pipeline,
    draw_run,
    to_dot,
    to_icon,
    to_json,
    to_mermaid,
    to_svg,
)
from dagabaaz_celery.drawing.svg import format_seconds
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Pipeline

SVG = "{http://www.w3.org/2000/svg}"
NASTY = '<b>"it\'s" & #1; \\ `x`</b>'


@dataclass
class FakeNode:
    """A node's snapshot, whose real class needs a database."""

    slug: str = "work"
    status: str = "launched"
    tasks: dict[str, int] = field(default_factory=dict)
    tasks_done: int = 0
    run_on: str | None = None
    rollback: str | None = None
    name: str = ""
    plugin: str = "do"
    depends_on: tuple[str, ...] = ()
    started_at: float | None = None
    ended_at: float | None = None

    @property
    def tasks_total(self) -> int:
        return sum(self.tasks.values())


@dataclass
class FakeRun:
    nodes: list[FakeNode]
    status: str = "running"
    id: str = "0190"
    pipeline: str = "media"


def drawn(slug: str, *depends_on: str, **fields) -> DrawnNode:
    return DrawnNode(slug, fields.pop("name", ""), fields.pop("plugin", "do"), depends_on, **fields)


def drawing(*nodes: DrawnNode, title: str = "media") -> Drawing:
    return Drawing(title, None, nodes)


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def boxes(svg: str) -> dict[str, tuple[float, float, float, float]]:
    """Left, top, right and bottom of each node's box, by slug."""
    found = {}
    for group in parse(svg).iter(f"{SVG}g"):
        rect = next(group.iter(f"{SVG}rect"))
        x, y, width, height = (float(rect.get(name)) for name in ("x", "y", "width", "height"))
        found[group.get("data-node")] = (x, y, x + width, y + height)
    return found


def words_of(node: FakeNode, status: str = "running") -> str:
    return draw_run(FakeRun([node], status)).nodes[0].words


# -- what is drawn


def test_a_pipeline_is_drawn_with_its_edges_and_no_states():
    pipeline = Pipeline(
        "media", nodes=[DagNode(slug="a", plugin="x", name="First"), DagNode(slug="b", plugin="y", depends_on=["a"])]
    )

    found = draw_pipeline(pipeline)

    assert (found.title, found.status) == ("media", None)
    assert found.nodes == (DrawnNode("a", "First", "x"), DrawnNode("b", "", "y", ("a",)))


@pytest.mark.parametrize(
    ("node", "run_status", "words"),
    [
        (FakeNode(status="blocked"), "running", "waiting"),
        (FakeNode(status="blocked"), "failed", "not run"),
        (FakeNode(status="blocked", run_on="failure"), "failed", "waiting"),
        (FakeNode(tasks={"queued": 3}), "running", "queued"),
        (FakeNode(tasks={"pending": 1}), "running", "queued"),
        (FakeNode(tasks={"queued": 3, "running": 1}), "running", "running"),
        (FakeNode(tasks={"queued": 3, "completed": 1}, tasks_done=1), "running", "running"),
        (FakeNode(status="launching"), "running", "running"),
        (FakeNode(tasks={"cancelled": 2}), "cancelled", "cancelled"),
        (FakeNode(status="completed", tasks={"completed": 3}), "running", "completed"),
        (FakeNode(status="skipped"), "running", "skipped"),
        (FakeNode(status="filtered"), "running", "filtered"),
        (FakeNode(status="failed", tasks={"failed": 1}), "failed", "failed"),
        (FakeNode(status="failed", tasks={"failed": 2, "completed": 5}), "failed", "2 failed"),
        (FakeNode(status="failed", tasks={"failed": 2, "running": 1_500}), "running", "2 failed, 1,500 running"),
        (FakeNode(status="failed", tasks={"crashed": 1}), "crashed", "crashed"),
        (FakeNode(status="failed", tasks={"crashed": 1, "failed": 1}), "crashed", "1 crashed, 1 failed"),
        (FakeNode(status="completed", rollback="blocked"), "failed", "completed, to be undone"),
        (FakeNode(status="completed", rollback="completed"), "failed", "completed, undone"),
    ],
)
def test_a_state_is_said_with_regard_to_tasks_and_to_the_end_of_the_run(node, run_status, words):
    assert words_of(node, run_status) == words


def test_a_run_is_named_by_pipeline_and_id():
    found = draw_run(FakeRun([FakeNode()]))

    assert (found.title, found.status) == ("media, run 0190", "running")


def test_every_state_has_a_word_a_shape_and_colours_of_its_own():
    for of in ("word", "shape", "line", "fill"):
        values = [getattr(state, of) for state in STATES.values()]
        different = len(set(values))
        assert all(values)
        assert different >= len(values) - (1 if of == "line" else 0), (
            of
        )  # "waiting" and "not run" differ by their shape


# -- Mermaid, DOT, JSON


def test_mermaid_has_nodes_edges_and_a_class_for_each_state():
    text = to_mermaid(
        drawing(drawn("a", state="completed"), drawn("b", "a", state="not run"), drawn("c", "a", state="completed"))
    )

    assert text.splitlines()[:4] == ["---", 'title: "media"', "---", "flowchart LR"]
    assert '    n0["a<br/>do<br/>completed"]' in text
    assert "    n0 --> n1\n    n0 --> n2\n" in text
    assert "    class n0,n2 completed" in text
    assert "    classDef not_run fill:#ffffff,stroke:#69737f,color:#1a1f24,stroke-dasharray:4 3" in text


def test_mermaid_labels_cannot_break_out_of_their_quotes():
    line = next(line for line in to_mermaid(drawing(drawn("a", name=NASTY))).splitlines() if line.startswith("    n0"))

    inside = line.removeprefix('    n0["').removesuffix('<br/>do"]')
    assert not set(inside) & set('"<>`&\\')
    assert re.sub(r"#(\d+);", lambda found: chr(int(found[1])), inside) == NASTY


def test_dot_quotes_what_users_wrote():
    text = to_dot(drawing(drawn("a", name='say "x\\n" &amp;'), drawn("b", "a"), title='t"'))

    assert text.startswith('digraph "t\\"" {')
    assert 'n0 [label="say \\"x\\\\n\\" &amp;amp;\\ndo", tooltip="a"' in text
    assert "    n0 -> n1;" in text


def test_json_is_plain_data():
    found = to_json(drawing(drawn("a"), drawn("b", "a", state="running", tasks_total=2, tasks={"running": 2})))

    assert json.loads(json.dumps(found)) == found
    assert found["title"] == "media"
    assert found["nodes"][1]["depends_on"] == ["a"]
    assert (found["nodes"][1]["state"], found["nodes"][1]["tasks"]) == ("running", {"running": 2})


# -- SVG


def test_a_box_says_its_state_in_colour_shape_and_word():
    for name, state in STATES.items():
        (group,) = parse(to_svg(drawing(drawn("a", state=name)))).iter(f"{SVG}g")

        assert group.get("data-state") == name
        assert next(group.iter(f"{SVG}rect")).get("fill") == state.fill
        assert next(group.iter(f"{SVG}path")).get("d") == state.shape
        assert name in [text.text for text in group.iter(f"{SVG}text")]


def test_an_icon_has_the_shape_and_colour_of_its_state():
    for name, state in STATES.items():
        (path,) = parse(to_icon(name)).iter(f"{SVG}path")
        assert (path.get("d"), path.get("fill")) == (state.shape, state.line)


def test_a_state_of_a_later_release_is_shown_by_its_name():
    assert ">thinking<" in to_svg(drawing(drawn("a", state="thinking")))


def test_many_tasks_are_counted_and_have_a_bar_with_a_part_for_each_kind():
    tasks = {"completed": 1_340, "running": 60, "failed": 100, "queued": 500}
    node = drawn("a", state="running", tasks_total=2_000, tasks_done=1_340, tasks=tasks)

    svg = to_svg(drawing(node))

    assert ">1,340 / 2,000<" in svg
    bars = {rect.get("data-part"): rect for rect in parse(svg).iter(f"{SVG}rect") if rect.get("data-part")}
    assert set(bars) == {"completed", "running", "failed"}
    widths = {part: float(bar.get("width")) for part, bar in bars.items()}
    assert widths["completed"] / widths["failed"] == pytest.approx(13.4, rel=0.05)
    assert len({bar.get("fill") for bar in bars.values()}) == 3
    assert float(bars["running"].get("x")) == pytest.approx(
        float(bars["completed"].get("x")) + widths["completed"], abs=0.2
    )


def test_a_tooltip_has_what_did_not_fit():
    fields = {"state": "failed", "tasks": {"failed": 1}, "run_on": "failure", "started_at": 1.0, "ended_at": 3.5}
    node = drawn("a", name="N" * 90, plugin="shop.tasks.do", **fields)

    (group,) = parse(to_svg(drawing(node))).iter(f"{SVG}g")

    assert group.find(f"{SVG}title").text.splitlines() == [
        f"{'N' * 90} (a)",
        "plugin shop.tasks.do",
        "runs last, on failure",
        "failed",
        "tasks: 1 failed",
        "took 2.50 s",
    ]
    assert [text.text for text in group.iter(f"{SVG}text")] == ["N" * 18 + "…", "failed", "runs last, on failure"]


def test_wide_letters_take_the_room_of_two():
    labels = [text.text for text in parse(to_svg(drawing(drawn("a", name="図" * 40)))).iter(f"{SVG}text")]

    assert labels[0] == "図" * 10 + "…"


def test_the_picture_scales_and_carries_no_style_or_script():
    svg = to_svg(drawing(drawn("a")))

    root = parse(svg)
    assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"
    assert root.find(f"{SVG}title").text == "media"
    assert "<style" not in svg
    assert "style=" not in svg


def test_links_lead_from_the_boxes_that_have_one():
    svg = to_svg(drawing(drawn("a"), drawn("b")), {"a": '/x?"&node=a'}.get)

    (link,) = parse(svg).iter(f"{SVG}a")
    assert link.get("href") == '/x?"&node=a'


def test_nothing_that_users_write_breaks_the_picture():
    text = NASTY + "\x00\x1b\ud800￿ tail"
    svg = to_svg(drawing(drawn(text, name=text, plugin=text, state="running"), title=text))

    svg.encode()
    (group,) = parse(svg).iter(f"{SVG}g")
    assert group.get("data-node") == NASTY + "     tail"


def test_edges_lie_behind_the_nodes():
    kinds = [element.tag for element in parse(to_svg(drawing(drawn("a"), drawn("b", "a"))))]

    assert kinds == [f"{SVG}title", f"{SVG}path", f"{SVG}path", f"{SVG}g", f"{SVG}g"]


def test_nodes_stand_behind_all_that_they_depend_on():
    found = boxes(to_svg(drawing(drawn("c", "b", "a"), drawn("b", "a"), drawn("a"))))

    assert found["a"][2] < found["b"][0]
    assert found["b"][2] < found["c"][0]


def test_a_finaliser_stands_behind_everything():
    found = boxes(to_svg(drawing(drawn("mail", run_on="always"), drawn("a"), drawn("b", "a"))))

    assert found["b"][2] < found["mail"][0]


def test_edges_that_need_not_cross_do_not():
    nodes = [drawn("a1"), drawn("a2"), drawn("a3"), drawn("b3", "a1"), drawn("b2", "a2"), drawn("b1", "a3")]

    found = boxes(to_svg(drawing(*nodes)))

    order = sorted(["a1", "a2", "a3"], key=lambda slug: found[slug][1])
    assert sorted(["b3", "b2", "b1"], key=lambda slug: found[slug][1]) == [
        {"a1": "b3", "a2": "b2", "a3": "b1"}[slug] for slug in order
    ]


def test_a_long_edge_is_led_round_the_nodes_between():
    svg = to_svg(drawing(drawn("a"), drawn("b", "a"), drawn("c", "a", "b")))

    left, top, right, bottom = boxes(svg)["b"]
    paths = [path.get("d") for path in parse(svg).iter(f"{SVG}path") if path.get("class") == "dagabaaz-edge"]
    (long,) = [path for path in paths if "L" in path]
    x, y = (float(number) for number in re.search(r"L([\d.]+) ([\d.]+)", long).groups())
    assert left < x <= right + 1
    assert y < top or y > bottom


@pytest.mark.parametrize("seed", range(5))
def test_no_two_boxes_of_a_large_graph_touch_and_all_are_inside(seed):
    chance = random.Random(seed)
    nodes = [
        drawn(f"n{i}", *{f"n{chance.randrange(i)}" for _ in range(chance.randrange(3))} if i else ()) for i in range(90)
    ]

    svg = to_svg(drawing(*nodes))

    found = boxes(svg)
    assert len(found) == 90
    for one, two in itertools.combinations(found.values(), 2):
        assert one[2] < two[0] or two[2] < one[0] or one[3] < two[1] or two[3] < one[1]
    width, height = (float(parse(svg).get(name)) for name in ("width", "height"))
    for left, top, right, bottom in found.values():
        assert left >= 0
        assert top >= 0
        assert right <= width
        assert bottom <= height


def test_a_long_chain_runs_downwards_and_a_short_one_sideways():
    def chain(length: int) -> ElementTree.Element:
        return parse(to_svg(drawing(*(drawn(f"n{i}", *[f"n{i - 1}"] if i else []) for i in range(length)))))

    assert float(chain(40).get("width")) < 300
    assert float(chain(3).get("height")) < 100


def test_a_graph_with_every_edge_there_can_be_is_drawn():
    svg = to_svg(drawing(*(drawn(f"n{i}", *(f"n{j}" for j in range(i))) for i in range(120))))

    assert svg.count("dagabaaz-edge") == 120 * 119 // 2


def test_a_pipeline_that_cannot_run_is_drawn_as_far_as_it_can_be():
    broken = [drawn("a", "b"), drawn("b", "a", "nowhere"), drawn("c", "c", "c")]

    assert set(boxes(to_svg(drawing(*broken)))) == {"a", "b", "c"}
    assert to_mermaid(drawing(*broken)).count("-->") == 3
    assert "no nodes" in to_svg(drawing())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.42 s"), (12.34, "12.3 s"), (59.99, "1 min 0 s"), (245, "4 min 5 s"), (12_000, "3 h 20 min")],
)
def test_times_are_said_in_units_that_people_read(seconds, text):
    assert format_seconds(seconds) == text
