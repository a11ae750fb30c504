"""What to do about an error, in the words of the command line."""

from dagabaaz_celery.errors import DagabaazError, Remedy

#: For each remedy what is typed, where a program would make a call.
WORDS = {
    Remedy.LIST_RUNS: "`runs` lists those it has.",
    Remedy.NAME_NODE: "Start a new run, wait for this one to end, or name the node to begin at: `--from SLUG`.",
    Remedy.UNDO_AGAIN: "Mend the cause and try again with `rollback`, or start a new run.",
    Remedy.WAIT_FOR_ROLLBACK: "`watch` tells when its rollback is over; then retry it.",
    Remedy.WAIT_FOR_FINALISERS: "`watch` tells when they are over; then undo it.",
    Remedy.LOOK_AT_ROLLBACK: "`show` tells how far it is.",
    Remedy.LOOK_AT_RUN: "Watch it longer, or see what `show`, `doctor` and the workers' logs tell.",
    Remedy.SAY_AGE: "Say how old they must be: `--older-than 30d`.",
}


def phrase(error: DagabaazError) -> str:
    """What went wrong, and what to type."""
    return error.message if error.remedy is None else f"{error.facts} {WORDS[error.remedy]}"
