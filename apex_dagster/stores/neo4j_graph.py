"""What Neo4j holds, back in the records it was made of: a version, or what is around an entity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apex_dagster.records import Entity, Relation, SagaId, VersionRef
from apex_dagster.stores.reading import Graph
from apex_dagster.stores.searching import Edge, Mention, Neighbourhood

NOTHING = Graph(refs=frozenset(), items={"entities": 0, "relations": 0}, entities=(), relations=())


def graph_of(
    version: Mapping[str, Any],
    mentions: Sequence[Sequence[Any]],
    relations: Sequence[Sequence[Any]],
) -> Graph:
    """`version` holds the node's properties; a mention is [properties, key, type], a relation
    [properties, source key, target key]."""
    stamped = [version, *(each[0] for each in (*mentions, *relations))]
    entities = sorted((_entity(*mention) for mention in mentions), key=lambda entity: entity.key)
    return Graph(
        refs=frozenset(
            VersionRef(
                document_id=each["document_id"], version=each["version"], saga_id=each["saga_id"]
            )
            for each in stamped
        ),
        items={"entities": len(mentions), "relations": len(relations)},
        entities=tuple(entities),
        relations=tuple(_relation(*relation) for relation in relations),
    )


def neighbourhood_of(
    mentions: Sequence[Mapping[str, Any]],
    edges: Sequence[Mapping[str, Any]],
    versions: int,
    *,
    limit: int,
) -> Neighbourhood:
    """Rows of `find_mentions` and `find_edges`; whose lists begin with document_id, version and
    saga_id, and have `limit` items at most."""
    lists = [row["mentions"] for row in mentions] + [row["edges"] for row in edges]
    return Neighbourhood(
        versions=versions,
        mentioned={row["key"]: row["mentioned"] for row in mentions},
        mentions=tuple(
            Mention(ref=_ref(*ref), entity_key=row["key"], chunk_ordinals=tuple(ordinals))
            for row in mentions
            for *ref, ordinals in row["mentions"]
        ),
        edges=tuple(
            Edge(ref=_ref(*ref), entity_key=row["key"], neighbour_key=key, chunk_ordinal=ordinal)
            for row in edges
            for *ref, key, ordinal in row["edges"]
        ),
        cut_off=any(len(each) == limit for each in lists),
    )


def _ref(document_id: str, version: int, saga_id: SagaId) -> VersionRef:
    return VersionRef(document_id=document_id, version=version, saga_id=saga_id)


def _entity(properties: Mapping[str, Any], key: str, entity_type: str) -> Entity:
    return Entity(
        key=key,
        type=entity_type,
        name=properties["name"],
        description=properties["description"],
        aliases=tuple(properties["aliases"]),
        chunk_ordinals=tuple(properties["chunk_ordinals"]),
        mentions=properties["mentions"],
    )


def _relation(properties: Mapping[str, Any], source_key: str, target_key: str) -> Relation:
    return Relation(
        source_key=source_key,
        target_key=target_key,
        type=properties["type"],
        description=properties["description"],
        weight=properties["weight"],
        chunk_ordinal=properties.get("chunk_ordinal"),
    )
