"""Which artifacts an edge lets through, which belong together, and which origin a new one gets."""

import contextlib
import math
import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from dagabaaz_celery.constants import ArtifactSelector, FanMode, FileType, FilterOperator
from dagabaaz_celery.models import DagArtifactLike, DagNode, EdgeFilter, FilterRule

Artifact = TypeVar("Artifact", bound=DagArtifactLike)


@dataclass(frozen=True, slots=True)
class OriginGroups(Generic[Artifact]):
    """Artifacts by origin, in order of first appearance; each group ends with the broadcast ones, which have none."""

    groups: dict[str, list[Artifact]]
    broadcast: list[Artifact]


def filter_artifacts(artifacts: Iterable[Artifact], edge_filter: EdgeFilter) -> list[Artifact]:
    """The artifacts for which every rule holds, then at most one of them when the filter selects by size.

    An artifact of unknown size is never selected. The result is a new list, also when everything passes.
    """
    passed = [artifact for artifact in artifacts if all(_holds(rule, artifact) for rule in edge_filter.rules)]
    if edge_filter.select is None:
        return passed
    sized = [artifact for artifact in passed if artifact.file_size is not None]
    choose = max if edge_filter.select == ArtifactSelector.LARGEST else min
    return [choose(sized, key=lambda artifact: artifact.file_size or 0)] if sized else []


def group_by_origin(artifacts: Sequence[Artifact]) -> OriginGroups[Artifact]:
    """Artifacts that go back to one origin together, as a GROUPED node's tasks get them.

    With no origin at all there are no groups, and everything is broadcast.
    """
    groups: dict[str, list[Artifact]] = {}
    broadcast: list[Artifact] = []
    for artifact in artifacts:
        origin = artifact.origin_artifact_id
        (broadcast if origin is None else groups.setdefault(origin, [])).append(artifact)
    for group in groups.values():
        group.extend(broadcast)
    return OriginGroups(groups, broadcast)


def filter_artifacts_by_origin(
    artifacts_by_node: Mapping[int, Sequence[Artifact]], origin_artifact_id: str
) -> dict[int, list[Artifact]]:
    """What one group's task sees of each node: the artifacts of its origin and the broadcast ones."""
    return {
        node: [artifact for artifact in artifacts if artifact.origin_artifact_id in (origin_artifact_id, None)]
        for node, artifacts in artifacts_by_node.items()
    }


def assign_origin(
    *,
    node: DagNode,
    is_root: bool,
    artifact_id: str,
    input_artifact_id: str | None,
    input_origin_id: str | None,
    group_origin_id: str | None,
) -> str | None:
    """The origin of an artifact that a task of ``node`` emits; None makes it a broadcast one.

    The input is a SINGLE task's, the group a GROUPED task's (None for its one task when nothing has an origin).
    """
    if node.scatter:
        return artifact_id
    if node.fan_mode == FanMode.AGGREGATE:
        return None
    if is_root:
        return artifact_id
    if node.fan_mode == FanMode.GROUPED:
        return group_origin_id
    return input_artifact_id if input_origin_id is None else input_origin_id


def _holds(rule: FilterRule, artifact: DagArtifactLike) -> bool:
    compare = _OPERATORS.get(rule.operator)
    return compare is not None and compare(_get_field(artifact, rule.field), rule.value)


# Fields ----------------------------------------------------------------------------------------------------------


def _get_field(artifact: DagArtifactLike, name: str) -> Any:
    read = _VIRTUAL_FIELDS.get(name)
    return artifact.metadata.get(name) if read is None else read(artifact)


def _get_extension(artifact: DagArtifactLike) -> str:
    return posixpath.splitext(artifact.file_name or "")[1].lower()


def _get_file_type(artifact: DagArtifactLike) -> FileType:
    by_extension = _TYPE_BY_EXTENSION.get(_get_extension(artifact), FileType.OTHER)
    if by_extension in _TYPES_BEST_TOLD_BY_EXTENSION:
        return by_extension
    mime_type = (artifact.mime_type or "").partition(";")[0].strip().lower()
    by_mime_type = _TYPE_BY_MIME_TYPE.get(mime_type) or _TYPE_BY_MIME_TYPE.get(mime_type.partition("/")[0])
    return by_mime_type or by_extension


_VIRTUAL_FIELDS: Mapping[str, Callable[[DagArtifactLike], Any]] = {
    "file_type": _get_file_type,
    "extension": _get_extension,
    "file_size": lambda artifact: artifact.file_size,
    "file_name": lambda artifact: artifact.file_name,
    "mime_type": lambda artifact: artifact.mime_type,
}

# Subtitles are often served as text/plain, archives as application/octet-stream or as what they hold.
_TYPES_BEST_TOLD_BY_EXTENSION = frozenset({FileType.SUBTITLE, FileType.ARCHIVE})

_EXTENSIONS = {
    FileType.VIDEO: ".mp4 .m4v .mkv .webm .mov .avi .wmv .flv .mpg .mpeg .ts .m2ts .3gp .ogv",
    FileType.SUBTITLE: ".srt .vtt .ass .ssa .sub .sbv .ttml .dfxp .smi .sup",
    FileType.IMAGE: ".jpg .jpeg .png .gif .webp .bmp .tif .tiff .svg .heic .avif",
    FileType.AUDIO: ".mp3 .m4a .aac .flac .wav .ogg .opus .wma .aiff",
    FileType.ARCHIVE: ".zip .tar .gz .tgz .bz2 .xz .zst .7z .rar",
}
_TYPE_BY_EXTENSION = {extension: kind for kind, names in _EXTENSIONS.items() for extension in names.split()}

_TYPE_BY_MIME_TYPE = {
    "video": FileType.VIDEO,
    "image": FileType.IMAGE,
    "audio": FileType.AUDIO,
    "text/vtt": FileType.SUBTITLE,
    "application/x-subrip": FileType.SUBTITLE,
    "application/ttml+xml": FileType.SUBTITLE,
    "application/zip": FileType.ARCHIVE,
    "application/x-tar": FileType.ARCHIVE,
    "application/gzip": FileType.ARCHIVE,
    "application/x-bzip2": FileType.ARCHIVE,
    "application/x-xz": FileType.ARCHIVE,
    "application/zstd": FileType.ARCHIVE,
    "application/x-7z-compressed": FileType.ARCHIVE,
    "application/vnd.rar": FileType.ARCHIVE,
    "application/x-rar-compressed": FileType.ARCHIVE,
}


# Comparisons: the field's value first, the rule's second ---------------------------------------------------------


def _to_number(value: object) -> int | float | None:
    """The finite number that ``value`` is or spells; a boolean is none."""
    if isinstance(value, str):
        value = _parse_number(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if isinstance(value, int) or math.isfinite(value) else None


def _parse_number(text: str) -> int | float | None:
    if "_" in text:  # Python reads 1_000 as a number, nobody who writes metadata does
        return None
    for parse in (int, float):
        with contextlib.suppress(ValueError):
            return parse(text)
    return None


def _to_text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()  # as JSON spells it
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a rule's 5 is kept as 5.0
    return str(value)


def _equals(actual: object, expected: object) -> bool:
    if actual is None:
        return False
    if isinstance(actual, bool):
        return _to_text(actual) == _to_text(expected).lower()
    left, right = _to_number(actual), _to_number(expected)
    if left is not None and right is not None:
        return left == right
    return _to_text(actual) == _to_text(expected)


def _compare_numbers(compare: Callable[[int | float, int | float], bool]) -> Callable[[object, object], bool]:
    def holds(actual: object, expected: object) -> bool:
        left, right = _to_number(actual), _to_number(expected)
        return left is not None and right is not None and compare(left, right)

    return holds


def _as_list(expected: Any) -> list[Any]:
    return expected if isinstance(expected, list) else [expected]


def _is_in(actual: object, expected: object) -> bool:
    return any(_equals(actual, choice) for choice in _as_list(expected))


def _contains(actual: object, expected: object) -> bool:
    """A list contains a member, any other value a piece of its text; of several expected ones any will do."""
    if actual is None:
        return False
    if isinstance(actual, list):
        return any(_is_in(member, expected) for member in actual)
    return any(_to_text(piece) in _to_text(actual) for piece in _as_list(expected))


def _starts_with(actual: object, expected: object) -> bool:
    return actual is not None and _to_text(actual).startswith(tuple(map(_to_text, _as_list(expected))))


def _ends_with(actual: object, expected: object) -> bool:
    return actual is not None and _to_text(actual).endswith(tuple(map(_to_text, _as_list(expected))))


def _exists(actual: object, _expected: object) -> bool:
    return actual is not None and actual != ""


def _negate(compare: Callable[[object, object], bool]) -> Callable[[object, object], bool]:
    return lambda actual, expected: not compare(actual, expected)


_OPERATORS: Mapping[FilterOperator, Callable[[Any, Any], bool]] = {
    FilterOperator.EQ: _equals,
    FilterOperator.NEQ: _negate(_equals),
    FilterOperator.GT: _compare_numbers(lambda left, right: left > right),
    FilterOperator.GTE: _compare_numbers(lambda left, right: left >= right),
    FilterOperator.LT: _compare_numbers(lambda left, right: left < right),
    FilterOperator.LTE: _compare_numbers(lambda left, right: left <= right),
    FilterOperator.IN: _is_in,
    FilterOperator.NOT_IN: _negate(_is_in),
    FilterOperator.CONTAINS: _contains,
    FilterOperator.NOT_CONTAINS: _negate(_contains),
    FilterOperator.STARTS_WITH: _starts_with,
    FilterOperator.ENDS_WITH: _ends_with,
    FilterOperator.EXISTS: _exists,
    FilterOperator.NOT_EXISTS: _negate(_exists),
}
