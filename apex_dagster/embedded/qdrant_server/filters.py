"""Qdrant's JSON filters as the engine's filter objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qdrant_edge as edge

from apex_dagster.embedded.qdrant_server.errors import BadInput, NotSupported, engine_values
from apex_dagster.embedded.qdrant_server.requests import Condition, Filter, Match, PayloadField

FILTER_DEPTH_MAX = 16  # a filter in a delete goes into the log, whose reader recurses

IsTextIndexed = Callable[[str], bool]


def edge_filter(body: Filter | None, is_text_indexed: IsTextIndexed) -> edge.Filter | None:
    """The engine's form of a filter; None stays None, and an empty filter matches every point."""
    if body is None:
        return None
    with engine_values():
        return _filter(body, is_text_indexed, depth=1)


def _filter(body: Filter, is_text_indexed: IsTextIndexed, *, depth: int) -> edge.Filter:
    if depth > FILTER_DEPTH_MAX:
        raise BadInput(f"Wrong input: a filter may be nested {FILTER_DEPTH_MAX} deep at most")

    def conditions(clause: list[Condition] | Condition | None) -> list[Any] | None:
        if clause is None:
            return None
        clauses = clause if isinstance(clause, list) else [clause]
        return [_condition(one, is_text_indexed, depth=depth) for one in clauses]

    min_should = None
    if body.min_should is not None:
        wanted = conditions(body.min_should.conditions) or []
        min_should = edge.MinShould(wanted, body.min_should.min_count)
    return edge.Filter(
        must=conditions(body.must),
        should=conditions(body.should),
        must_not=conditions(body.must_not),
        min_should=min_should,
    )


def _condition(body: Condition, is_text_indexed: IsTextIndexed, *, depth: int) -> Any:
    if sum(_kinds(body)) > 1:
        raise BadInput("Format error in JSON body: a condition is of one kind only")
    if body.key is not None:
        return _field_condition(body, body.key, is_text_indexed)
    if any(test is not None for test in (body.match, body.range)) or _is_bare(body):
        raise BadInput("Format error in JSON body: a condition on a field needs `key`")
    if body.has_id is not None:
        return edge.HasIdCondition(set(body.has_id))
    if isinstance(body.is_empty, PayloadField):
        return edge.IsEmptyCondition(body.is_empty.key)
    if isinstance(body.is_null, PayloadField):
        return edge.IsNullCondition(body.is_null.key)
    if body.nested is not None:
        inner = _filter(body.nested.filter, is_text_indexed, depth=depth + 1)
        return edge.NestedCondition(body.nested.key, inner)
    return _filter(body, is_text_indexed, depth=depth + 1)


def _kinds(body: Condition) -> tuple[bool, ...]:
    clauses = (body.must, body.should, body.must_not, body.min_should)
    return (
        body.key is not None,
        body.has_id is not None,
        isinstance(body.is_empty, PayloadField),
        isinstance(body.is_null, PayloadField),
        body.nested is not None,
        any(clause is not None for clause in clauses),
    )


def _is_bare(body: Condition) -> bool:
    return isinstance(body.is_empty, bool) or isinstance(body.is_null, bool)


def _field_condition(body: Condition, key: str, is_text_indexed: IsTextIndexed) -> Any:
    tests = (body.match, body.range, body.is_empty, body.is_null)
    if all(test is None for test in tests):
        raise BadInput("Wrong input: a condition on a field needs `match`, `range`, `is_empty` ...")
    return edge.FieldCondition(
        key,
        match=None if body.match is None else _match(body.match, key, is_text_indexed),
        range=None if body.range is None else _range(body.range),
        is_empty=None if isinstance(body.is_empty, PayloadField) else body.is_empty,
        is_null=None if isinstance(body.is_null, PayloadField) else body.is_null,
    )


def _match(body: Match, key: str, is_text_indexed: IsTextIndexed) -> Any:
    given = {name: getattr(body, name) for name in body.__struct_fields__}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) != 1:
        raise BadInput("Format error in JSON body: `match` needs exactly one of its variants")
    name, value = given.popitem()
    if name in ("text", "text_any", "phrase") and not is_text_indexed(key):
        # Without an index the engine compares words where a server compares substrings.
        raise NotSupported(f"match.{name} on {key!r}, which has no text index")
    return _MATCHES[name](value)


_MATCHES: dict[str, Callable[[Any], Any]] = {
    "value": edge.MatchValue,
    "any": edge.MatchAny,
    "except_": edge.MatchExcept,
    "text": edge.MatchText,
    "text_any": edge.MatchTextAny,
    "phrase": edge.MatchPhrase,
}


def _range(body: Any) -> Any:
    bounds = {name: getattr(body, name) for name in body.__struct_fields__}
    if any(isinstance(bound, str) for bound in bounds.values()):
        return edge.RangeDateTime(**bounds)
    return edge.RangeFloat(**bounds)
