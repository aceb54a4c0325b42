"""A gateway that speaks part of Qdrant's REST API over Qdrant's own engine, `qdrant-edge`.

It stands in for a Qdrant server where none can be installed: an unmodified
`QdrantClient(url=..., api_key=..., prefer_grpc=False)` works with it for what this project does.
It is not a Qdrant server and never pretends to be: `GET /` names the engine, and whatever lies
outside the subset is answered with 501 and the reason.

    python -m apex_dagster.embedded.qdrant_server --port 6333 --data DIR --api-key-file FILE
"""
