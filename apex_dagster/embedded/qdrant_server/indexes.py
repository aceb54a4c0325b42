"""Payload indexes: a request's schema as the engine's, and the other way round."""

from __future__ import annotations

from typing import Any

import qdrant_edge as edge

from apex_dagster.embedded.qdrant_server.errors import BadInput, NotSupported, engine_values
from apex_dagster.embedded.qdrant_server.requests import CreateIndex
from apex_dagster.embedded.qdrant_server.shard import Shard

_PARAMS: dict[str, tuple[Any, frozenset[str]]] = {
    "keyword": (edge.KeywordIndexParams, frozenset({"is_tenant", "prefix"})),
    "integer": (edge.IntegerIndexParams, frozenset({"lookup", "range", "is_principal"})),
    "float": (edge.FloatIndexParams, frozenset({"is_principal"})),
    "bool": (edge.BoolIndexParams, frozenset()),
    "datetime": (edge.DatetimeIndexParams, frozenset({"is_principal"})),
    "uuid": (edge.UuidIndexParams, frozenset({"is_tenant"})),
    "text": (
        edge.TextIndexParams,
        frozenset(
            {
                "tokenizer",
                "min_token_len",
                "max_token_len",
                "lowercase",
                "ascii_folding",
                "phrase_matching",
            }
        ),
    ),
}
_EVERY_TYPE = frozenset({"on_disk", "enable_hnsw"})
_TOKENIZERS = {
    "prefix": edge.TokenizerType.Prefix,
    "whitespace": edge.TokenizerType.Whitespace,
    "word": edge.TokenizerType.Word,
    "multilingual": edge.TokenizerType.Multilingual,
}


def create(shard: Shard, body: CreateIndex) -> int:
    """Index a payload field; repeating it is harmless."""
    with engine_values():
        schema = _schema(body.field_schema)
        operation = edge.UpdateOperation.create_field_index(body.field_name, schema)
    return shard.update_index(operation)


def delete(shard: Shard, field_name: str) -> int:
    """Drop an index; succeeds where there is none."""
    with engine_values():
        operation = edge.UpdateOperation.delete_field_index(field_name)
    return shard.update_index(operation)


def payload_schema(shard: Shard) -> dict[str, Any]:
    """The `payload_schema` of a collection's info."""
    schema = shard.call(lambda engine: engine.info()).payload_schema
    return {
        field: {"data_type": _type_name(index.data_type), "points": index.points}
        for field, index in schema.items()
    }


def _schema(wanted: str | dict[str, Any] | None) -> Any:
    options: dict[str, Any] = dict(wanted) if isinstance(wanted, dict) else {"type": wanted}
    kind = options.pop("type", None)
    if kind is None:
        raise BadInput("Format error in JSON body: `field_schema` has to name a type")
    if kind not in _PARAMS:
        raise NotSupported(f"a payload index of type {kind!r}; known are {', '.join(_PARAMS)}")
    make, own = _PARAMS[kind]
    unknown = {name for name, value in options.items() if value is not None} - own - _EVERY_TYPE
    if unknown:
        raise NotSupported(f"{', '.join(sorted(unknown))} in a payload index of type {kind}")
    if options.get("tokenizer") is not None:
        options["tokenizer"] = _tokenizer(options["tokenizer"])
    return make(**options)


def _tokenizer(name: Any) -> edge.TokenizerType:
    if name not in _TOKENIZERS:
        raise BadInput(f"Format error in JSON body: unknown tokenizer {name!r}")
    return _TOKENIZERS[name]


def _type_name(kind: edge.PayloadSchemaType) -> str:
    return repr(kind).rpartition(".")[2].lower()
