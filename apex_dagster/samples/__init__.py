"""A small world in documents: what `apex demo` ingests, and what tests read.

A century after the steamer Aurelia sank off Gull Island, her wreck is found where a tidal power
plant is to be built. Archaeologists, a bank, an insurer, a shipyard, two laboratories and the
fishermen of Marlow Bay appear again and again, so the graph is worth looking at. All invented.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
QUESTIONS = Path(__file__).parent / "questions.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedQuestion:
    """What a reader may ask, and which documents answer it."""

    kind: str  # "lexical", "paraphrased" or "entities"
    question: str
    relevant: Mapping[str, int]  # sample, as in document ids after the folder -> 1 to 3; else 0


def sample_files() -> list[Path]:
    """The sample documents, sorted by name: txt, md, html, pdf, docx, json and jsonl."""
    return sorted(path for path in CORPUS.iterdir() if path.is_file())


def judged_questions() -> list[JudgedQuestion]:
    """Questions over the sample documents, judged by hand; how, says the file."""
    asked = json.loads(QUESTIONS.read_text("utf-8"))["questions"]
    return [JudgedQuestion(**each) for each in asked]
