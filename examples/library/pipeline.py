"""The library pipeline: what is done to which files, and what becomes of the findings."""

from dagabaaz_celery.constants import FanMode, FilterOperator
from dagabaaz_celery.models import DagNode, EdgeFilter, ExpressionSource, FilterRule, RuntimeSource
from dagabaaz_celery.pipeline import Pipeline


def rule(field: str, value: str | list[str], operator: FilterOperator = FilterOperator.EQ) -> FilterRule:
    """A rule of an edge filter, in the order in which one says it."""
    return FilterRule(field=field, operator=operator, value=value)


library = Pipeline(
    "library",
    nodes=[
        DagNode(
            slug="scan",
            plugin="scan",
            bindings={
                "folder": RuntimeSource(key="folder", label="Folder", required=True),
                "out": RuntimeSource(key="out", label="Where the report goes", required=True),
                "limit": RuntimeSource(key="limit", label="Files at most", default=5000),
            },
        ),
        # Four branches, each with the files that its filter lets through. One that gets none is filtered, and the
        # join below goes on without it.
        DagNode(
            slug="image",
            plugin="read_image",
            depends_on=["scan"],
            edge_filters={
                # `file_type` is told from MIME type and extension; an SVG is an image by type and a text to read.
                "scan": EdgeFilter(
                    rules=[rule("file_type", "image"), rule("extension", [".svg", ".svgz"], FilterOperator.NOT_IN)]
                )
            },
            bindings={
                "thumbnail_name": ExpressionSource(
                    expression="{scan.number | pad(5)}-{scan.file_name | stem | lower | truncate(40)}.jpg"
                )
            },
        ),
        DagNode(
            slug="text",
            plugin="read_text",
            depends_on=["scan"],
            edge_filters={"scan": EdgeFilter(rules=[rule("kind", "text")])},  # `kind` is what scan says of the file
        ),
        DagNode(
            slug="subtitle",
            plugin="read_subtitles",
            depends_on=["scan"],
            edge_filters={"scan": EdgeFilter(rules=[rule("file_type", "subtitle")])},
        ),
        DagNode(
            slug="archive",
            plugin="list_archive",
            depends_on=["scan"],
            edge_filters={"scan": EdgeFilter(rules=[rule("file_type", "archive")])},
        ),
        DagNode(slug="checksum", plugin="hash_file", depends_on=["scan"]),  # no filter: every file
        # Every artifact above remembers which file it comes from: one task for each file, with all that is known of it.
        DagNode(
            slug="join",
            plugin="join",
            depends_on=["scan", "image", "text", "subtitle", "archive", "checksum"],
            fan_mode=FanMode.GROUPED,
            bindings={"title": ExpressionSource(expression="{scan.file_name | stem | replace(_, ) | truncate(80)}")},
        ),
        DagNode(
            slug="report",
            plugin="report",
            depends_on=["join"],
            fan_mode=FanMode.AGGREGATE,
            bindings={
                "title": ExpressionSource(expression="Library of {input.folder | basename | default(all files)}"),
                "folder": RuntimeSource(key="folder"),
                "out": RuntimeSource(key="out"),
            },
        ),
    ],
)
