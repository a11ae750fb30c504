"""Pictures of pipelines and runs: Mermaid, DOT, JSON and SVG, without I/O and without a graph library."""

from dagabaaz_celery.drawing.model import Drawing, DrawnNode, draw_pipeline, draw_run
from dagabaaz_celery.drawing.states import STATES, State
from dagabaaz_celery.drawing.svg import format_seconds, to_icon, to_svg
from dagabaaz_celery.drawing.text import to_dot, to_json, to_mermaid

__all__ = [
    "STATES",
    "Drawing",
    "DrawnNode",
    "State",
    "draw_pipeline",
    "draw_run",
    "format_seconds",
    "to_dot",
    "to_icon",
    "to_json",
    "to_mermaid",
    "to_svg",
]
