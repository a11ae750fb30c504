"""Random graphs for tests: every fan mode, filters, joins, scatter, passthrough nodes and small fan-out limits."""

import string

from hypothesis import strategies as st

from dagabaaz_celery.constants import ArtifactSelector, FanMode, FilterOperator
from dagabaaz_celery.models import DagNode, EdgeFilter, FilterRule

RULES = st.one_of(
    st.builds(
        FilterRule,
        field=st.just("file_type"),
        operator=st.sampled_from([FilterOperator.EQ, FilterOperator.NEQ]),
        value=st.sampled_from(["video", "subtitle"]),
    ),
    st.builds(
        FilterRule,
        field=st.just("file_size"),
        operator=st.sampled_from([FilterOperator.GT, FilterOperator.LTE]),
        value=st.sampled_from([40.0, "200"]),
    ),
    st.builds(FilterRule, field=st.just("even"), operator=st.just(FilterOperator.EXISTS)),
)
NONE = st.just([])
FILTERS = st.builds(
    EdgeFilter, rules=st.lists(RULES, max_size=2), select=st.sampled_from([None, None, *ArtifactSelector])
)


@st.composite
def graphs(draw: st.DrawFn) -> list[DagNode]:
    """Up to eight nodes, each depending on some of those before it; "gate" is a passthrough plugin."""
    nodes: list[DagNode] = []
    for slug in string.ascii_lowercase[: draw(st.integers(3, 8))]:
        before = [other.slug for other in nodes]
        some = st.lists(st.sampled_from(before), unique=True, min_size=1, max_size=3) if before else NONE
        depends_on = draw(st.one_of(some, some, some, NONE))
        nodes.append(
            DagNode(
                slug=slug,
                plugin=draw(st.sampled_from(["work", "work", "gate"])),
                depends_on=depends_on,
                fan_mode=draw(st.sampled_from(FanMode)),
                scatter=draw(st.sampled_from([False, False, True])),
                max_fan_out=draw(st.sampled_from([None, None, None, 2])),
                edge_filters={dependency: draw(FILTERS) for dependency in depends_on if draw(st.booleans())},
            )
        )
    return nodes
