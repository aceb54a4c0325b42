"""A small world in documents: what `apex demo` ingests, and what tests read.

A century after the steamer Aurelia sank off Gull Island, her wreck is found where a tidal power
plant is to be built. Archaeologists, a bank, an insurer, a shipyard, two laboratories and the
fishermen of Marlow Bay appear again and again, so the graph is worth looking at. All invented.
"""

from __future__ import annotations

from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


def sample_files() -> list[Path]:
    """The sample documents, sorted by name: txt, md, html, pdf, docx, json and jsonl."""
    return sorted(path for path in CORPUS.iterdir() if path.is_file())
