"""How an order is carried out. The Django app finds this module by its name, in every process."""

from dagabaaz_celery.contrib.django import dag
from dagabaaz_celery.models import DagNode, RuntimeSource
from dagabaaz_celery.pipeline import Pipeline

ORDER = {"order": RuntimeSource(key="order", label="Number of the order", required=True)}

dag.register(
    Pipeline(
        "order",
        description="Carries out an order. What was done is undone, the last first, when a step fails.",
        nodes=[
            DagNode(slug="reserve", name="Reserve the goods", plugin="reserve", rollback="release", bindings=ORDER),
            DagNode(
                slug="charge",
                name="Charge the card",
                plugin="charge",
                rollback="refund",
                depends_on=["reserve"],
                bindings=ORDER,
            ),
            DagNode(slug="pack", name="Pack parcels", plugin="pack", depends_on=["charge"], bindings=ORDER),
            # One task for each parcel that was packed.
            DagNode(
                slug="ship",
                name="Ship each parcel",
                plugin="ship",
                rollback="recall",
                depends_on=["pack"],
                bindings=ORDER,
            ),
        ],
    )
)
