"""A pipeline whose frames wait where a test wants them to: for a file, which the run's input names."""

import time
from pathlib import Path

from dagabaaz_celery.app import Dagabaaz
from dagabaaz_celery.models import DagNode, EdgeFilter, FilterRule, TaskArtifact
from dagabaaz_celery.pipeline import Pipeline

#: Seconds that a frame waits at most.
_LONGEST_WAIT = 120.0


def declare_film(dag: Dagabaaz) -> None:
    """Frames from ``hold_from`` on are rendered when the file ``gate`` is there; those in ``bad`` cannot be.

    While there is a file ``gate`` with ``.hold`` behind its name, no frame is.
    """

    @dag.plugin
    def reserve(count: int, gate: str, hold_from: int, bad: list[int]) -> dict:
        return {"count": count, "gate": gate, "hold_from": hold_from, "bad": bad}

    @dag.plugin
    def release(result: dict) -> None: ...

    @dag.plugin
    def scan(count: int, gate: str, hold_from: int, bad: list[int]) -> list[dict]:
        return [
            {"frame": frame, "gate": gate, "held": frame >= hold_from, "bad": frame in bad} for frame in range(count)
        ]

    @dag.plugin
    def render(frame: int, gate: str, held: bool, bad: bool) -> dict:
        deadline = time.monotonic() + _LONGEST_WAIT
        while (held and not Path(gate).exists()) or Path(f"{gate}.hold").exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody opened {gate}")
            time.sleep(0.02)
        if bad:
            raise ValueError(f"frame {frame} has no <colour> profile")
        return {"frame": frame}

    @dag.plugin
    def work() -> None: ...

    @dag.plugin
    def join(artifacts: list[TaskArtifact]) -> int:
        return len(artifacts)


def make_film(name: str = "film", **render: object) -> Pipeline:
    """The pipeline; ``render`` are fields of the node that has a task for each frame."""
    has_text = EdgeFilter(rules=[FilterRule(field="file_type", operator="eq", value="subtitle")])
    return Pipeline(
        name,
        nodes=[
            DagNode(slug="reserve", plugin="reserve", name="Reserve storage", rollback="release"),
            DagNode(slug="scan", plugin="scan", name="Scan the film", depends_on=["reserve"]),
            DagNode(slug="sound", plugin="work", name="Mix the sound", depends_on=["reserve"]),
            DagNode(slug="render", plugin="render", name="Render frames", depends_on=["scan"], **render),
            DagNode(
                slug="subtitles",
                plugin="work",
                name="Burn subtitles",
                depends_on=["scan"],
                edge_filters={"scan": has_text},
            ),
            DagNode(
                slug="join",
                plugin="join",
                name="Join",
                depends_on=["render", "sound", "subtitles"],
                fan_mode="aggregate",
            ),
            DagNode(slug="publish", plugin="work", name="Publish", depends_on=["join"]),
            DagNode(slug="mail", plugin="work", name="Mail the team", run_on="failure"),
        ],
    )
