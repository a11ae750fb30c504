"""Pipelines, and a plugin beside them."""

from dagabaaz_celery.contrib.django import dag
from dagabaaz_celery.models import DagNode
from dagabaaz_celery.pipeline import Pipeline


@dag.plugin
def ship(text: str) -> str:
    """Ship what was packed."""
    return f"shipped, {text}"


dag.register(
    Pipeline(
        "order", nodes=[DagNode(slug="pack", plugin="pack"), DagNode(slug="ship", plugin="ship", depends_on=["pack"])]
    )
)
dag.register(Pipeline("refusal", nodes=[DagNode(slug="refuse", plugin="refuse")]))
