"""Edge filters, groups by origin, and the origin of new artifacts."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagabaaz_celery.constants import ArtifactSelector, FanMode, FilterOperator
from dagabaaz_celery.filter import assign_origin, filter_artifacts, filter_artifacts_by_origin, group_by_origin
from dagabaaz_celery.models import DagArtifact, DagNode, EdgeFilter, FilterRule, TaskArtifact


def artifact(name: str | None = None, origin: str | None = None, **fields: Any) -> DagArtifact:
    return DagArtifact(id=name or "a", file_name=name, origin_artifact_id=origin, **fields)


def holds(operator: str, actual: object, expected: object) -> bool:
    """Whether a rule lets an artifact through whose metadata field ``x`` is ``actual``."""
    # model_construct: also values that a pipeline file could not hold
    rule = FilterRule.model_construct(field="x", operator=operator, value=expected)
    return bool(filter_artifacts([artifact(metadata={"x": actual})], EdgeFilter.model_construct(rules=[rule])))


def field_is(found: DagArtifact, field: str, value: str | float) -> bool:
    rule = FilterRule(field=field, operator=FilterOperator.EQ, value=value)
    return bool(filter_artifacts([found], EdgeFilter(rules=[rule])))


# Rules and selection


def test_all_rules_must_hold() -> None:
    small, large, other = artifact("s.mp4", file_size=1), artifact("l.mp4", file_size=9), artifact("o.srt", file_size=9)
    is_video = FilterRule(field="file_type", operator=FilterOperator.EQ, value="video")
    is_large = FilterRule(field="file_size", operator=FilterOperator.GT, value=5)

    assert filter_artifacts([small, large, other], EdgeFilter(rules=[is_video, is_large])) == [large]


def test_a_filter_without_rules_gives_a_new_list_of_everything() -> None:
    given_artifacts = [artifact("a"), artifact("b")]

    passed = filter_artifacts(given_artifacts, EdgeFilter())

    assert passed == given_artifacts
    assert passed is not given_artifacts


@pytest.mark.parametrize(
    ("select", "expected"), [(ArtifactSelector.LARGEST, "large"), (ArtifactSelector.SMALLEST, "small")]
)
def test_select_keeps_one_by_size_and_never_an_unknown_size(select: ArtifactSelector, expected: str) -> None:
    artifacts = [artifact("unknown"), artifact("small", file_size=0), artifact("large", file_size=7)]

    assert [found.id for found in filter_artifacts(artifacts, EdgeFilter(select=select))] == [expected]


def test_select_keeps_the_first_of_equals() -> None:
    artifacts = [artifact("one", file_size=7), artifact("two", file_size=7)]

    assert filter_artifacts(artifacts, EdgeFilter(select=ArtifactSelector.LARGEST)) == [artifacts[0]]


def test_select_among_unknown_sizes_keeps_nothing() -> None:
    assert filter_artifacts([artifact("a"), artifact("b")], EdgeFilter(select=ArtifactSelector.LARGEST)) == []


def test_select_looks_only_at_what_the_rules_let_through() -> None:
    artifacts = [artifact("a.mp4", file_size=9), artifact("b.srt", file_size=3), artifact("c.srt", file_size=5)]
    rule = FilterRule(field="extension", operator=FilterOperator.EQ, value=".srt")

    passed = filter_artifacts(artifacts, EdgeFilter(rules=[rule], select=ArtifactSelector.LARGEST))

    assert passed == [artifacts[2]]


def test_the_worker_side_view_of_an_artifact_is_filtered_alike() -> None:
    artifacts = [TaskArtifact(file_path="/d/a.mp4", file_name="a.mp4"), TaskArtifact(file_name="b.srt")]
    rule = FilterRule(field="file_type", operator=FilterOperator.EQ, value="subtitle")

    assert filter_artifacts(artifacts, EdgeFilter(rules=[rule])) == [artifacts[1]]


# Fields


def test_virtual_fields_read_the_artifact_and_other_names_its_metadata() -> None:
    found = artifact("Film.MP4", file_size=12, mime_type="video/mp4", metadata={"lang": "en", "file_name": "hidden"})

    assert field_is(found, "file_name", "Film.MP4")
    assert field_is(found, "file_size", 12)
    assert field_is(found, "mime_type", "video/mp4")
    assert field_is(found, "extension", ".mp4")
    assert field_is(found, "lang", "en")
    assert not field_is(found, "file_name", "hidden")
    assert not field_is(found, "nothing", "")


@pytest.mark.parametrize(
    ("file_name", "mime_type", "expected"),
    [
        ("a.mkv", None, "video"),
        ("a.JPG", None, "image"),
        ("a.flac", None, "audio"),
        ("a.srt", None, "subtitle"),
        ("a.zip", None, "archive"),
        ("a.pdf", None, "other"),
        ("noext", None, "other"),
        (None, None, "other"),
        (None, "video/mp4", "video"),
        (None, "Image/PNG; q=1", "image"),
        ("a", "audio/mpeg", "audio"),
        ("a", "text/vtt", "subtitle"),
        ("a", "application/zip", "archive"),
        ("a.mp4", "audio/mp4", "audio"),  # the MIME type outranks the extension …
        ("a.srt", "video/mp4", "subtitle"),  # … but not a subtitle's
        ("a.tar.gz", "image/png", "archive"),  # … nor an archive's
        ("a.mp4", "application/octet-stream", "video"),
    ],
)
def test_file_type(file_name: str | None, mime_type: str | None, expected: str) -> None:
    found = DagArtifact(id="a", file_name=file_name, mime_type=mime_type)

    assert field_is(found, "file_type", expected)


def test_a_name_without_extension_has_an_empty_one() -> None:
    rule = FilterRule(field="extension", operator=FilterOperator.NOT_EXISTS)

    assert filter_artifacts([artifact("README"), artifact("a.txt"), artifact(None)], EdgeFilter(rules=[rule])) == [
        artifact("README"),
        artifact(None),
    ]


# Operators

EQUAL = [
    (5, 5),
    (5, "5"),
    ("5", 5.0),
    ("5.0", "5"),
    ("1e3", 1000),
    (0.5, "0.5"),
    ("abc", "abc"),
    (2**60 + 1, str(2**60 + 1)),
    (True, "true"),
    (False, "False"),
    (["a"], ["a"]),
    (10**400, str(10**400)),
]
UNEQUAL = [
    (5, 6),
    ("abc", "ABC"),
    (True, 1),
    (True, 1.0),
    (True, "1"),
    (False, 0),
    (False, "0"),
    (None, ""),
    (None, "None"),
    (None, 0),
    ("", 0),
    (2**60 + 1, 2**60),
    ("infinity", "inf"),
    ("1_000", "1000"),
    ("9" * 5000, "8" * 5000),
    ({"a": 1}, "a"),
]


@pytest.mark.parametrize(("actual", "expected"), EQUAL)
def test_eq_and_in_hold_for_equal_values(actual: object, expected: object) -> None:
    assert holds("eq", actual, expected)
    assert not holds("neq", actual, expected)
    assert holds("in", actual, ["other", expected])
    assert not holds("not_in", actual, ["other", expected])


@pytest.mark.parametrize(("actual", "expected"), UNEQUAL)
def test_neq_and_not_in_hold_for_unequal_values(actual: object, expected: object) -> None:
    assert not holds("eq", actual, expected)
    assert holds("neq", actual, expected)
    assert not holds("in", actual, ["other", expected])
    assert holds("not_in", actual, ["other", expected])


def test_in_takes_a_single_value_for_a_list_of_one() -> None:
    assert holds("in", "a", "a")
    assert not holds("in", "a", "abc")
    assert not holds("in", "a", [])


@pytest.mark.parametrize(
    ("actual", "expected", "order"),
    [(1, 2, -1), (2, 1.5, 1), (3, 3, 0), ("10", "9", 1), (9, "10", -1), ("1.5", 1.5, 0), (10**400, 5, 1)],
)
def test_order_compares_numbers_and_numeric_strings(actual: object, expected: object, order: int) -> None:
    assert holds("gt", actual, expected) == (order > 0)
    assert holds("gte", actual, expected) == (order >= 0)
    assert holds("lt", actual, expected) == (order < 0)
    assert holds("lte", actual, expected) == (order <= 0)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ("b", "a"),
        (5, "a"),
        ("a", 5),
        (None, 5),
        (True, 0),
        (5, ["1"]),
        ("nan", 1),
        (float("nan"), 1),
        (1, float("inf")),
    ],
)
def test_order_is_false_when_either_side_is_not_a_number(actual: object, expected: object) -> None:
    assert not any(holds(operator, actual, expected) for operator in ("gt", "gte", "lt", "lte"))


@pytest.mark.parametrize(
    ("actual", "expected", "found"),
    [
        ("hello world", "lo w", True),
        ("hello", "Hello", False),
        ("s05e02", ["e02", "x"], True),
        (1234, 23.0, True),
        (["en", "de"], "de", True),
        (["en", "de"], "d", False),
        ([1, 2], "2", True),
        (["en"], ["de", "en"], True),
        ([], "a", False),
        (None, "", False),
        (None, "None", False),
    ],
)
def test_contains(actual: object, expected: object, found: bool) -> None:
    assert holds("contains", actual, expected) is found
    assert holds("not_contains", actual, expected) is not found


@pytest.mark.parametrize(
    ("actual", "start", "end"),
    [("movie.mp4", "mov", ".mp4"), (1234, 12.0, "34"), ("a1", ["b", "a"], ["2", "1"]), ("same", "same", "same")],
)
def test_starts_and_ends_with(actual: object, start: object, end: object) -> None:
    assert holds("starts_with", actual, start)
    assert holds("ends_with", actual, end)
    assert not holds("starts_with", actual, "zz")
    assert not holds("ends_with", actual, "zz")


def test_a_missing_field_neither_starts_nor_ends_with_anything() -> None:
    assert not holds("starts_with", None, "")
    assert not holds("ends_with", None, "")


@pytest.mark.parametrize(
    ("actual", "exists"), [(0, True), (False, True), ([], True), ("x", True), (None, False), ("", False)]
)
def test_exists(actual: object, exists: bool) -> None:
    assert holds("exists", actual, "") is exists
    assert holds("not_exists", actual, "") is not exists


def test_an_unknown_operator_lets_nothing_through() -> None:
    assert not holds("sounds_like", "a", "a")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)
)


@given(
    operator=st.sampled_from(FilterOperator), actual=JSON_VALUES, expected=st.text() | st.floats() | st.lists(st.text())
)
def test_no_rule_ever_raises(operator: FilterOperator, actual: object, expected: object) -> None:
    assert holds(operator, actual, expected) in {True, False}


# Origins


def test_groups_follow_the_first_appearance_of_each_origin() -> None:
    a, b, c = artifact("a", "o2"), artifact("b", "o1"), artifact("c", "o2")

    grouped = group_by_origin([a, b, c])

    assert list(grouped.groups.items()) == [("o2", [a, c]), ("o1", [b])]
    assert grouped.broadcast == []


def test_artifacts_without_an_origin_go_into_every_group() -> None:
    a, shared, b = artifact("a", "o1"), artifact("s"), artifact("b", "o2")

    grouped = group_by_origin([a, shared, b])

    assert grouped.groups == {"o1": [a, shared], "o2": [b, shared]}
    assert grouped.broadcast == [shared]


def test_with_no_origin_at_all_there_are_no_groups() -> None:
    grouped = group_by_origin([artifact("a"), artifact("b")])

    assert grouped.groups == {}
    assert grouped.broadcast == [artifact("a"), artifact("b")]


def test_the_readers_side_sees_its_origin_and_the_broadcast_ones() -> None:
    a, shared, b = artifact("a", "o1"), artifact("s"), artifact("b", "o2")

    assert filter_artifacts_by_origin({0: [shared, a, b], 3: [b]}, "o1") == {0: [shared, a], 3: []}


@given(origins=st.lists(st.sampled_from([None, "o1", "o2", "o3"])))
def test_both_sides_see_the_same_members(origins: list[str | None]) -> None:
    artifacts = [artifact(f"a{position}", origin) for position, origin in enumerate(origins)]

    for origin, group in group_by_origin(artifacts).groups.items():
        seen = filter_artifacts_by_origin({0: artifacts}, origin)[0]
        assert sorted(group, key=artifacts.index) == seen


FAN_MODES = [FanMode.SINGLE, FanMode.AGGREGATE, FanMode.GROUPED]


def origin_of(
    fan_mode: FanMode, *, scatter: bool = False, is_root: bool = False, **given_ids: str | None
) -> str | None:
    ids = {"input_artifact_id": None, "input_origin_id": None, "group_origin_id": None, **given_ids}
    node = DagNode(plugin="p", fan_mode=fan_mode, scatter=scatter)
    return assign_origin(node=node, is_root=is_root, artifact_id="new", **ids)


@pytest.mark.parametrize(("fan_mode", "is_root"), list(itertools.product(FAN_MODES, [True, False])))
def test_a_scattered_artifact_is_its_own_origin(fan_mode: FanMode, is_root: bool) -> None:
    assert origin_of(fan_mode, scatter=True, is_root=is_root, input_origin_id="o", group_origin_id="g") == "new"


def test_artifacts_of_a_root_are_their_own_origins() -> None:
    assert origin_of(FanMode.SINGLE, is_root=True) == "new"
    assert origin_of(FanMode.GROUPED, is_root=True) == "new"


def test_artifacts_of_an_aggregate_have_no_origin() -> None:
    assert origin_of(FanMode.AGGREGATE, is_root=True) is None
    assert origin_of(FanMode.AGGREGATE) is None


def test_a_single_task_hands_on_its_inputs_origin_or_the_input_itself() -> None:
    assert origin_of(FanMode.SINGLE, input_artifact_id="in", input_origin_id="o") == "o"
    assert origin_of(FanMode.SINGLE, input_artifact_id="in") == "in"


def test_a_grouped_task_hands_on_its_group() -> None:
    assert origin_of(FanMode.GROUPED, group_origin_id="g") == "g"
    assert origin_of(FanMode.GROUPED) is None
