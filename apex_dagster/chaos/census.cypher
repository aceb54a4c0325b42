// Everything that Neo4j holds, counted without the adapter. A line `// name //` starts each query.

// versions //
MATCH (v:DocumentVersion)
RETURN v.saga_id AS saga_id, 'versions' AS kind, v.ingestion_status AS status, count(*) AS items

// mentions //
MATCH ()-[m:MENTIONS]->()
RETURN m.saga_id AS saga_id, 'mentions' AS kind, m.ingestion_status AS status, count(*) AS items

// relations //
MATCH ()-[r:RELATES]->()
RETURN r.saga_id AS saga_id, 'relations' AS kind, r.ingestion_status AS status, count(*) AS items

// current //
MATCH (d:Document)-[c:CURRENT]->(v)
RETURN v.saga_id AS saga_id, 'pointers' AS kind, 'committed' AS status, count(*) AS items

// entities //
MATCH (e:Entity) RETURN e.key AS key, count(*) AS items
