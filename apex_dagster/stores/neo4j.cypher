// Every query of neo4j_store.py. A line `// name //` starts each; the model is described there.
//
// Locks. Neo4j is read-committed, so a query that decides by what it reads first takes the write
// lock of the node that it reads (SET touched), in a query of its own: within one query the planner
// may read before it writes. Creating a relationship to a dense node locks nothing by itself.
// All transactions lock in one order: documents, versions, entities, each sorted by its key.

// lock_versions //
// MERGE also waits for a transaction in flight that is creating the same version. `status` is null
// where there was none.
UNWIND $saga_ids AS saga_id
MERGE (v:DocumentVersion {saga_id: saga_id})
SET v.touched = timestamp()
RETURN saga_id, v.ingestion_status AS status

// lock_entities //
UNWIND $entities AS entity
MERGE (e:Entity {key: entity.key})
ON CREATE SET e.type = entity.type, e.name = entity.name
SET e.touched = timestamp()

// create_mentions //
// Properties one by one: a map that is set on a relationship is written property by property again.
UNWIND $versions AS version
MATCH (v:DocumentVersion {saga_id: version.stamp.saga_id})
SET v += version.stamp, v += version.about
WITH v, version
UNWIND version.mentions AS mention
MATCH (e:Entity {key: mention.key})
CREATE (v)-[:MENTIONS {
    saga_id: version.stamp.saga_id, document_id: version.stamp.document_id,
    version: version.stamp.version, ingestion_status: version.stamp.ingestion_status,
    name: mention.name, description: mention.description, aliases: mention.aliases,
    chunk_ordinals: mention.chunk_ordinals, mentions: mention.mentions
}]->(e)

// create_relations //
UNWIND $versions AS version
UNWIND version.relations AS relation
MATCH (source:Entity {key: relation.source_key})
MATCH (target:Entity {key: relation.target_key})
CREATE (source)-[:RELATES {
    saga_id: version.stamp.saga_id, document_id: version.stamp.document_id,
    version: version.stamp.version, ingestion_status: version.stamp.ingestion_status,
    type: relation.type, description: relation.description, weight: relation.weight,
    chunk_ordinal: relation.chunk_ordinal
}]->(target)

// lock_documents //
UNWIND $document_ids AS document_id
MERGE (d:Document {document_id: document_id})
ON CREATE SET d.fence = 0
SET d.touched = timestamp()

// find_publishable //
UNWIND $publications AS publication
MATCH (d:Document {document_id: publication.document_id})
OPTIONAL MATCH (v:DocumentVersion {saga_id: publication.saga_id})
RETURN publication.saga_id AS saga_id, d.fence AS fence, v IS NOT NULL AS found

// mark_committed //
UNWIND $publications AS publication
MATCH (d:Document {document_id: publication.document_id})
MATCH (v:DocumentVersion {saga_id: publication.saga_id})
SET d.fence = publication.version,
    v.ingestion_status = 'committed'
MERGE (d)-[:CURRENT]->(v)
WITH d, v
MATCH (d)-[outdated:CURRENT]->(other) WHERE other <> v
DELETE outdated

// mark_mentions //
UNWIND $saga_ids AS saga_id
MATCH (:DocumentVersion {saga_id: saga_id})-[m:MENTIONS]->()
WHERE m.ingestion_status = $from_status
SET m.ingestion_status = $to_status

// mark_relations //
UNWIND $saga_ids AS saga_id
MATCH ()-[r:RELATES {saga_id: saga_id}]->()
WHERE r.ingestion_status = $from_status
SET r.ingestion_status = $to_status

// mark_superseded //
UNWIND $publications AS publication
MATCH (v:DocumentVersion {saga_id: publication.replaced_saga_id})
WHERE v.document_id = publication.document_id AND v.version < publication.version
  AND v.ingestion_status = 'committed'
SET v.ingestion_status = 'superseded'
RETURN v.saga_id AS saga_id

// lock_entities_of //
UNWIND $saga_ids AS saga_id
MATCH (:DocumentVersion {saga_id: saga_id})-[:MENTIONS]->(e:Entity)
WITH DISTINCT e ORDER BY e.key
SET e.touched = timestamp()

// raise_fences //
// A deletion counts as published: no older version is marked committed after it.
UNWIND $removals AS removal
MATCH (d:Document {document_id: removal.document_id}) WHERE d.fence < removal.version
SET d.fence = removal.version

// find_older //
UNWIND $removals AS removal
MATCH (v:DocumentVersion {document_id: removal.document_id}) WHERE v.version < removal.version
RETURN v.saga_id AS saga_id, removal.deletion AS deletion

// count_older //
UNWIND $removals AS removal
OPTIONAL MATCH (v:DocumentVersion {document_id: removal.document_id})
WHERE v.version < removal.version AND v.ingestion_status <> 'staged'
RETURN removal.deletion AS deletion, count(v) AS versions,
       sum(COUNT { (v)-[:MENTIONS]->() } + COUNT { ()-[:RELATES {saga_id: v.saga_id}]->() }) AS edges

// entities_of //
UNWIND $saga_ids AS saga_id
MATCH (:DocumentVersion {saga_id: saga_id})-[:MENTIONS]->(e:Entity)
RETURN DISTINCT e.key AS key

// delete_relations //
UNWIND $saga_ids AS saga_id
MATCH ()-[r:RELATES {saga_id: saga_id}]->()
DELETE r
RETURN saga_id, count(r) AS removed

// delete_mentions //
UNWIND $saga_ids AS saga_id
MATCH (:DocumentVersion {saga_id: saga_id})-[m:MENTIONS]->()
DELETE m
RETURN saga_id, count(m) AS removed

// delete_versions //
// The version's CURRENT goes with it; its Document stays, since a late publish must find the fence.
UNWIND $saga_ids AS saga_id
MATCH (v:DocumentVersion {saga_id: saga_id})
DETACH DELETE v

// clear_versions //
UNWIND $saga_ids AS saga_id
MATCH (v:DocumentVersion {saga_id: saga_id})
SET v = {saga_id: saga_id}

// restore_entities //
// A shared entity holds nothing that does not follow from its key, so no document's word is lost.
UNWIND $saga_ids AS saga_id
MATCH (:DocumentVersion {saga_id: saga_id})-[:MENTIONS]->(e:Entity)
WITH DISTINCT e ORDER BY e.key
WITH e, split(e.key, ':') AS parts
SET e = {key: e.key, type: parts[0], name: substring(e.key, size(parts[0]) + 1)}

// read_version //
MATCH (v:DocumentVersion {document_id: $document_id, version: $version})
RETURN properties(v) AS version,
       EXISTS { (:Document)-[:CURRENT]->(v) } AS current,
       COLLECT {
         MATCH (v)-[m:MENTIONS]->(e) RETURN [properties(m), e.key, e.type, e.name]
       } AS mentions,
       COLLECT {
         MATCH (source)-[r:RELATES {saga_id: v.saga_id}]->(target)
         RETURN [properties(r), source.key, target.key]
       } AS relations

// read_contents //
MATCH (v:DocumentVersion) WHERE v.document_id IN $document_ids
RETURN properties(v) AS version,
       EXISTS { (:Document {document_id: v.document_id})-[:CURRENT]->(v) } AS current,
       COLLECT {
         MATCH (v)-[m:MENTIONS]->(e) RETURN [e.key, e.type, e.name, properties(m)]
       } AS mentions,
       COLLECT {
         MATCH (source)-[r:RELATES {saga_id: v.saga_id}]->(target)
         RETURN [source.key, target.key, properties(r)]
       } AS relations

// read_inventory //
// Versions and relations that have lost theirs; both by the index on saga_id. A version that is
// being created has no document yet.
CALL () {
  MATCH (v:DocumentVersion) WHERE v.saga_id > $after AND v.document_id IS NOT NULL
  RETURN v.saga_id AS saga_id, v.document_id AS document_id, v.version AS version
  ORDER BY saga_id LIMIT $limit
  UNION
  MATCH ()-[r:RELATES]->() WHERE r.saga_id > $after
  WITH DISTINCT r.saga_id AS saga_id, r.document_id AS document_id, r.version AS version
  ORDER BY saga_id LIMIT $limit
  RETURN saga_id, document_id, version
}
RETURN DISTINCT saga_id, document_id, version ORDER BY saga_id LIMIT $limit

// read_graph //
MATCH (v:DocumentVersion {saga_id: $saga_id})
RETURN properties(v) AS version,
       COLLECT { MATCH (v)-[m:MENTIONS]->(e) RETURN [properties(m), e.key, e.type] } AS mentions,
       COLLECT {
         MATCH (source)-[r:RELATES {saga_id: v.saga_id}]->(target)
         RETURN [properties(r), source.key, target.key]
       } AS relations

// find_mentions //
// The degree of an entity is stored with it. Mentions and edges are of whatever version.
UNWIND $keys AS key
MATCH (e:Entity {key: key})
RETURN e.key AS key,
       COUNT { (e)<-[:MENTIONS]-() } AS mentioned,
       COLLECT {
         MATCH (e)<-[m:MENTIONS]-()
         WHERE $saga_ids IS NULL OR m.saga_id IN $saga_ids
         RETURN [m.document_id, m.version, m.saga_id, m.chunk_ordinals] LIMIT $limit
       } AS mentions

// find_edges //
UNWIND $keys AS key
MATCH (e:Entity {key: key})
RETURN e.key AS key,
       COLLECT {
         MATCH (e)-[r:RELATES]-(neighbour)
         RETURN [r.document_id, r.version, r.saga_id, neighbour.key, r.chunk_ordinal] LIMIT $limit
       } AS edges

// count_versions //
MATCH (v:DocumentVersion) RETURN count(v) AS versions

// count_mentions //
UNWIND $saga_ids AS saga_id
MATCH (v:DocumentVersion {saga_id: saga_id})
RETURN saga_id, COUNT { (v)-[:MENTIONS]->() } AS entities

// find_orphans //
MATCH (e:Entity) WHERE NOT EXISTS { (e)--() }
RETURN e.key AS key LIMIT $limit

// lock_orphans //
UNWIND $keys AS key
MATCH (e:Entity {key: key})
SET e.touched = timestamp()

// delete_orphans //
UNWIND $keys AS key
MATCH (e:Entity {key: key}) WHERE NOT EXISTS { (e)--() }
DELETE e
RETURN count(e) AS removed

// constraint_version //
CREATE CONSTRAINT apex_version_saga IF NOT EXISTS
FOR (v:DocumentVersion) REQUIRE v.saga_id IS UNIQUE

// constraint_entity //
CREATE CONSTRAINT apex_entity_key IF NOT EXISTS
FOR (e:Entity) REQUIRE e.key IS UNIQUE

// constraint_document //
CREATE CONSTRAINT apex_document_id IF NOT EXISTS
FOR (d:Document) REQUIRE d.document_id IS UNIQUE

// index_version //
CREATE INDEX apex_version_document IF NOT EXISTS
FOR (v:DocumentVersion) ON (v.document_id, v.version)

// drop_index_mentions //
// Of an earlier version: mentions are found from their version, and need no index of their own.
DROP INDEX apex_mentions_saga IF EXISTS

// index_relates //
CREATE INDEX apex_relates_saga IF NOT EXISTS
FOR ()-[r:RELATES]-() ON (r.saga_id)

// await_indexes //
CALL db.awaitIndexes($timeout_s)

// ping //
RETURN 1
