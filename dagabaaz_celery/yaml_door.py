"""YAML from people, read as plain data: safe types only, nothing repeated, nothing that grows when it is read."""

from typing import Any

import yaml

# libyaml's parser where PyYAML was built with it: ten times faster. Values are always built by the safe constructor.
_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq", "merge")}


def parse_yaml(text: str, *, max_size: int, max_depth: int) -> Any:
    """The one document in ``text``: text, numbers, booleans, null, lists and mappings (None: an empty text).

    ``max_size`` bounds the characters with every alias written out, ``max_depth`` the levels of nesting. Repeated keys,
    other types (a date too) and aliases to what contains them are refused.

    Raises ValueError whose message starts with line and column where they are known.
    """
    try:
        _refuse_deep(text, max_depth)
        root = yaml.compose(text, Loader=_PARSER)
        if root is None:
            return None
        _Measure(max_size).measure(root)
        return yaml.SafeLoader("").construct_document(root)
    except yaml.MarkedYAMLError as error:
        what = error.problem or error.context or "not YAML"
        if "nesting depth" in what:  # newer parsers have a limit of their own, far above this one
            what = f"nested deeper than {max_depth} levels"
        mark = error.problem_mark or error.context_mark
        raise ValueError(_locate(mark, what) if mark else what) from None
    except yaml.YAMLError as error:  # a character that YAML does not allow: the first line says which
        raise ValueError(str(error).splitlines()[0]) from None
    except LookupError as error:  # what an explicit tag such as !!bool makes of an odd value
        raise ValueError(f"a value does not fit its tag: {error}") from None


def _refuse_deep(text: str, max_depth: int) -> None:
    """Look at the events first: composing recurses in C, and some 50,000 brackets would kill the process."""
    depth = 0
    for event in yaml.parse(text, Loader=_PARSER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > max_depth:
                raise ValueError(_locate(event.start_mark, f"nested deeper than {max_depth} levels"))
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def write_yaml(data: object) -> str:
    """YAML of plain JSON data, keys in their order, that ``parse_yaml`` reads back equal."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


class _Dumper(yaml.SafeDumper):
    """Escapes the line breaks that only Unicode knows: left bare, a reader would fold them."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if any(character in text for character in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


class _Measure:
    """Walks a composed document once, each shared node too, and refuses what is not plain or grows too large."""

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._sizes: dict[int, int] = {}
        self._open: set[int] = set()

    def measure(self, node: yaml.Node) -> int:
        """Characters of the node with its aliases written out, each collection counting as one."""
        if id(node) in self._open:
            raise ValueError(_locate(node.start_mark, "an alias refers to what contains it"))
        if id(node) not in self._sizes:
            self._open.add(id(node))
            self._sizes[id(node)] = self._measure_new(node)
            self._open.remove(id(node))
        return self._sizes[id(node)]

    def _measure_new(self, node: yaml.Node) -> int:
        if node.tag not in _PLAIN_TAGS:
            raise ValueError(_locate(node.start_mark, _explain_tag(node)))
        if isinstance(node, yaml.ScalarNode):
            return len(node.value)
        if isinstance(node, yaml.MappingNode):
            _refuse_repeated_keys(node)
            size = 1 + sum(self.measure(key) + self.measure(value) for key, value in node.value)
        else:
            size = 1 + sum(self.measure(item) for item in node.value)
        if size > self._max_size:
            raise ValueError(
                _locate(node.start_mark, f"longer than {self._max_size:,} characters with its aliases written out")
            )
        return size


def _refuse_repeated_keys(node: yaml.MappingNode) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            identity = (key.tag, key.value)
            if identity in lines:
                what = f"the key {key.value!r} stands here again, first on line {lines[identity]}; keep one"
                raise ValueError(_locate(key.start_mark, what))
            lines[identity] = key.start_mark.line + 1


def _explain_tag(node: yaml.Node) -> str:
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if isinstance(node, yaml.ScalarNode):
        return f"{node.value[:60]!r} is read as {kind}, which is not plain data; put quotes round it to make it text"
    return f"the type {kind} is not plain data; use a list or a mapping"


def _locate(mark: Any, what: str) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}: {what}"
