"""Expressions, filters and groups: what is done for each task or artifact."""

from typing import Any

import pytest

from dagabaaz_celery.expressions import resolve_expression, tokenize_expression
from dagabaaz_celery.filter import filter_artifacts, group_by_origin
from dagabaaz_celery.models import DagArtifact, EdgeFilter, FilterRule

EXPRESSIONS = {
    "a field": "{source.title}",
    "pipes": "Hi {source.title | upper | truncate(50)}: {source.tags | join(,)}!",
    "a list": "{list(a.url, b.url) | join(,)}",
}
VALUES = {
    ("source", "title"): "film",
    ("source", "tags"): ["a", "b"],
    ("a", "url"): "u1",
    ("b", "url"): "u2",
}
RULES = {
    "no rule": [],
    "file type": [FilterRule(field="file_type", operator="eq", value="video")],
    "two numbers": [
        FilterRule(field="file_size", operator="gt", value=100),
        FilterRule(field="height", operator="lte", value="1080"),
    ],
}
ARTIFACTS = [
    DagArtifact(
        id=str(n),
        file_name=f"{n}.{'mkv' if n % 2 else 'srt'}",
        file_size=n,
        metadata={"height": n},
        origin_artifact_id=str(n % 100),
    )
    for n in range(1000)
]


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_evaluating_an_expression(benchmark: Any, name: str) -> None:
    text = EXPRESSIONS[name]

    benchmark(resolve_expression, text, lambda namespace, key: VALUES.get((namespace, key)))


def test_parsing_an_expression(benchmark: Any) -> None:
    parse = getattr(tokenize_expression, "__wrapped__", tokenize_expression)  # not what is remembered of it

    benchmark(parse, EXPRESSIONS["pipes"])


@pytest.mark.parametrize("name", RULES)
def test_filtering_1000_artifacts(benchmark: Any, name: str) -> None:
    benchmark(filter_artifacts, ARTIFACTS, EdgeFilter(rules=RULES[name]))


def test_grouping_1000_artifacts(benchmark: Any) -> None:
    benchmark(group_by_origin, ARTIFACTS)
