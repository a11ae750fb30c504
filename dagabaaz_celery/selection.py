"""Which runs a call on many runs means."""

from collections.abc import Mapping
from dataclasses import dataclass

from dagabaaz_celery.constants import RunStatus
from dagabaaz_celery.errors import RunSelectionError, format_problems, suggest_closest
from dagabaaz_celery.tags import find_tag_problems


@dataclass(frozen=True, slots=True)
class RunSelection:
    """Runs of one pipeline, in one status, with all of some tags: as far as each is named."""

    pipeline: str | None
    status: RunStatus | None
    tags: dict[str, str]

    @property
    def is_everything(self) -> bool:
        """Whether no criterion is named."""
        return self.pipeline is None and self.status is None and not self.tags


def read_selection(pipeline: str | None, status: str | None, tags: Mapping[str, str] | None) -> RunSelection:
    """What these criteria mean. Raises RunSelectionError, with every problem, for what no run can be."""
    problems = [] if tags is None else list(find_tag_problems(tags))
    statuses = [each.value for each in RunStatus]
    if status is not None and status not in statuses:
        problems.append(
            f"a run's status is one of {', '.join(statuses)}, not {status!r}{suggest_closest(str(status), statuses)}"
        )
    if problems:
        raise RunSelectionError(format_problems("No run can be like this", problems), problems)
    return RunSelection(pipeline, None if status is None else RunStatus(status), dict(tags or {}))
