"""What a reader sees of a node's state: a word, a shape, and colours that people who are colour-blind tell apart."""

from dataclasses import dataclass


@dataclass(frozen=True)
class State:
    """How a state is drawn.

    ``word`` is what people read; ``fill`` and ``line`` are colours; ``shape`` is a path in a square of 14 units.
    """

    word: str
    fill: str
    line: str
    shape: str
    dashed: bool = False


_DISC = "M7 0.5a6.5 6.5 0 1 0 0 13a6.5 6.5 0 1 0 0 -13Z"
_RING = _DISC + "M7 2.5a4.5 4.5 0 1 1 0 9a4.5 4.5 0 1 1 0 -9Z"

#: Every state that a node of a run is drawn in, by name. Shapes are filled by the rule "evenodd".
STATES: dict[str, State] = {
    state.word: state
    for state in [
        State("waiting", "#f4f5f7", "#69737f", _RING, dashed=True),
        State("queued", "#e9eef7", "#4a6a94", _RING + "M6 4h2v3h2v2h-4Z"),
        State("running", "#d6e8fb", "#0f5fae", "M2.5 0.5L13 7L2.5 13.5Z"),
        State("completed", "#d9f0de", "#1b7239", _DISC + "M3.2 7.2L4.6 5.8L6.2 7.4L9.6 4L11 5.4L6.2 10.2Z"),
        State(
            "failed",
            "#fbdcd9",
            "#b3261e",
            _DISC + "M4.9 3.5L7 5.6L9.1 3.5L10.5 4.9L8.4 7L10.5 9.1L9.1 10.5L7 8.4L4.9 10.5L3.5 9.1L5.6 7L3.5 4.9Z",
        ),
        State("crashed", "#f3daf0", "#852073", "M7 0L14 13.5H0ZM6.2 4.5h1.6v4.5h-1.6ZM6.2 10h1.6v1.7h-1.6Z"),
        State("cancelled", "#fae7cd", "#945200", "M1 1h12v12h-12ZM4 6v2h6v-2Z"),
        State("skipped", "#ebebeb", "#5c5c5c", "M0 1L6 7L0 13ZM6 1L12 7L6 13ZM12 1h2v12h-2Z"),
        State("filtered", "#e8e6f6", "#574b91", "M0.5 1h13L8.6 7.5V13.5L5.4 11.5V7.5Z"),
        State("not run", "#ffffff", "#69737f", "M0.5 6h13v2h-13Z", dashed=True),
    ]
}

#: How a node of a pipeline is drawn that is no run.
PLAIN = State("", "#f4f5f7", "#4a5563", "")

#: How far a node's undoing is, in words, by ``rollback``.
UNDOING = {"blocked": "to be undone", "running": "undoing", "completed": "undone", "failed": "undoing failed"}


def find_state(name: str | None) -> State:
    """How a state is drawn; one that this release does not know, by its name alone."""
    if name is None:
        return PLAIN
    return STATES.get(name) or State(name, PLAIN.fill, PLAIN.line, _RING)
