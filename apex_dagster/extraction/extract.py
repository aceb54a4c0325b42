"""Document → Extraction: parse, chunk, entities, relations, embeddings. Offline and deterministic.

    extractor = Extractor.default(spacy_model="en_core_web_sm", embedding_dim=384, …)
    extraction = extractor.extract(document)

Each part is a Protocol beside its default; `replace(extractor, embedder=…)` plugs in another.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apex_dagster.errors import DocumentRejected, InvalidInput
from apex_dagster.extraction.chunk import Chunker, SemanticChunker
from apex_dagster.extraction.content_hash import content_hash
from apex_dagster.extraction.decode import clean_json
from apex_dagster.extraction.embed import Embedder, MiniLmEmbedder
from apex_dagster.extraction.entities import EntityRecogniser, SpacyRecogniser
from apex_dagster.extraction.parse import (
    JSON,
    JSONL,
    KreuzbergParser,
    Parsed,
    Parser,
    heading,
    media_type,
    stem,
)
from apex_dagster.extraction.prepared import Prepared, Refused, prepare, read_prepared
from apex_dagster.extraction.relations import GrammarRelationFinder, RelationFinder
from apex_dagster.records import Chunk, Document, Entity, Extraction, Relation


@dataclass(frozen=True, slots=True, kw_only=True)
class Extractor:
    """Five parts and the limits. Loads models at first use; safe to use from several threads."""

    parser: Parser
    chunker: Chunker
    recogniser: EntityRecogniser
    relation_finder: RelationFinder
    embedder: Embedder
    embedding_dim: int
    document_bytes_max: int
    chunks_max: int
    text_chars_min: int

    @classmethod
    def default(
        cls,
        *,
        spacy_model: str = "en_core_web_sm",
        embedding_dim: int = 384,
        chunk_tokens: int = 200,
        document_bytes_max: int = 32 * 1024 * 1024,
        chunks_max: int = 10_000,
        text_chars_min: int = 8,
    ) -> Extractor:
        """The offline parts; the same values give the process's one instance, so that a warm worker
        loads its models once."""
        return default_extractor(
            spacy_model, embedding_dim, chunk_tokens, document_bytes_max, chunks_max, text_chars_min
        )

    def extract(self, document: Document) -> Extraction:
        """All that the stores will hold of `document`.

        Raises DocumentRejected, with a reason for its sender, for what cannot be ingested.
        """
        self._check_size(document)
        if media_type(document) in (JSON, JSONL):
            prepared = read_prepared(document, embedding_dim=self.embedding_dim)
            return self._complete(document, prepared)
        return self._extract_text(document, self.parser.parse(document))

    def given(self, document: Document, fields: Mapping[str, Any]) -> Extraction | None:
        """The extraction of a JSON document that states all of it; None where something is to be
        extracted. `fields` is the object in `document.content`. Needs no model.

        Raises DocumentRejected, with the field at fault.
        """
        self._check_size(document)
        try:
            prepared = prepare(fields, embedding_dim=self.embedding_dim)
        except Refused as refused:
            raise DocumentRejected(document.document_id, refused.reason) from refused
        self._check_prepared(document, prepared)
        return self._complete(document, prepared) if prepared.is_whole else None

    def extract_many(self, documents: Iterable[Document]) -> list[Extraction | DocumentRejected]:
        """One outcome a document, in order; a rejected document does not stop the others."""
        return [self._outcome(document) for document in documents]

    def warm_up(self) -> None:
        """Load every model now (about 4 s), rather than with the first document."""
        self.extract(Document(document_id="warm-up", name="a.txt", content=b"Ada met Bo in Oslo."))

    def _outcome(self, document: Document) -> Extraction | DocumentRejected:
        try:
            return self.extract(document)
        except DocumentRejected as rejection:
            return rejection

    def _extract_text(self, document: Document, parsed: Parsed) -> Extraction:
        self._check_text(document, parsed.text)
        chunks = self.chunker.split(parsed.text, markdown=parsed.markdown)
        self._check_chunks(document, chunks)
        entities, relations = self._read(parsed.text, chunks)
        return build(
            document,
            title=parsed.title,
            metadata=parsed.metadata,
            chunks=chunks,
            embeddings=self._embed(document, chunks),
            embedding_model=self.embedder.model,
            entities=entities,
            relations=relations,
        )

    def _complete(self, document: Document, prepared: Prepared) -> Extraction:
        """Extract what a JSON document leaves open."""
        self._check_prepared(document, prepared)
        chunks: Sequence[Chunk]
        if prepared.chunks is None:
            text = prepared.text or ""
            chunks = self.chunker.split(text, markdown=False)
        else:
            chunks = prepared.chunks
            text = "\n\n".join(chunk.text for chunk in chunks)
        self._check_chunks(document, chunks)
        entities, relations = prepared.entities, prepared.relations
        if entities is None:
            entities, relations = self._read(text, chunks)
        embeddings, model = prepared.embeddings, prepared.embedding_model
        if embeddings is None:
            embeddings, model = self._embed(document, chunks), self.embedder.model
        return build(
            document,
            title=prepared.title or heading(text, markdown=False) or stem(document),
            metadata=prepared.metadata,
            chunks=chunks,
            embeddings=embeddings,
            embedding_model=model,
            entities=entities,
            relations=relations,
            collection=prepared.collection,
        )

    def _read(
        self, text: str, chunks: Sequence[Chunk]
    ) -> tuple[tuple[Entity, ...], tuple[Relation, ...]]:
        reading = self.recogniser.recognise(text, chunks)
        return reading.entities, self.relation_finder.find(reading, chunks)

    def _embed(self, document: Document, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        if self.embedder.dim != self.embedding_dim:
            raise DocumentRejected(
                document.document_id,
                f"embedding_dim is {self.embedding_dim}, but {self.embedder.model} makes vectors of"
                f" {self.embedder.dim}: send embeddings with the document, or set"
                f" APEX_EMBEDDING_DIM={self.embedder.dim}",
            )
        try:
            return self.embedder.embed_texts([chunk.text for chunk in chunks])
        except InvalidInput as error:
            raise DocumentRejected(document.document_id, f"chunks: {error}") from error

    # Limits

    def _check_prepared(self, document: Document, prepared: Prepared) -> None:
        """What can be said before anything is extracted."""
        if prepared.text is None and prepared.chunks is None:
            raise DocumentRejected(
                document.document_id,
                "it holds no text: give one of text, content, body, chunks or embeddings",
            )
        if prepared.chunks is None:
            self._check_text(document, prepared.text or "")
        else:
            self._check_chunks(document, prepared.chunks)

    def _check_size(self, document: Document) -> None:
        if len(document.content) > self.document_bytes_max:
            raise DocumentRejected(
                document.document_id,
                f"it has {len(document.content):,} bytes, more than document_bytes_max ="
                f" {self.document_bytes_max:,}; split it, or raise APEX_DOCUMENT_BYTES_MAX",
            )

    def _check_text(self, document: Document, text: str) -> None:
        readable = sum(character.isalnum() for character in text)
        if readable < self.text_chars_min or not readable:
            raise DocumentRejected(
                document.document_id,
                f"it holds {readable} letters and digits of text, fewer than text_chars_min ="
                f" {self.text_chars_min}: empty, or a scan that needs OCR first",
            )

    def _check_chunks(self, document: Document, chunks: Sequence[Chunk]) -> None:
        if len(chunks) > self.chunks_max:
            raise DocumentRejected(
                document.document_id,
                f"chunks: there are {len(chunks):,}, more than chunks_max = {self.chunks_max:,};"
                " split it, or raise APEX_CHUNKS_MAX",
            )


@functools.cache
def default_extractor(
    spacy_model: str,
    embedding_dim: int,
    chunk_tokens: int,
    document_bytes_max: int,
    chunks_max: int,
    text_chars_min: int,
) -> Extractor:
    return Extractor(
        parser=KreuzbergParser(),
        chunker=SemanticChunker(chunk_tokens=chunk_tokens),
        recogniser=SpacyRecogniser(spacy_model=spacy_model),
        relation_finder=GrammarRelationFinder(),
        embedder=MiniLmEmbedder(),
        embedding_dim=embedding_dim,
        document_bytes_max=document_bytes_max,
        chunks_max=chunks_max,
        text_chars_min=text_chars_min,
    )


def build(
    document: Document,
    *,
    title: str,
    metadata: Mapping[str, Any],
    chunks: Sequence[Chunk],
    embeddings: NDArray[np.float32],
    embedding_model: str,
    entities: tuple[Entity, ...],
    relations: tuple[Relation, ...],
    collection: str | None = None,
) -> Extraction:
    """The extraction; what the sender says of a document wins over what its file says."""
    submitted = content_hash(document)  # also refuses metadata that is not JSON
    return Extraction(
        document_id=document.document_id,
        title=title,
        collection=collection or document.collection,
        content_hash=submitted,
        metadata={**metadata, **clean_json(document.metadata)},
        chunks=tuple(chunks),
        embeddings=embeddings,
        embedding_model=embedding_model,
        entities=entities,
        relations=relations,
    )
