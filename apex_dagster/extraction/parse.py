"""Document → text: its own decoding for text and Markdown, kreuzberg for everything else."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Protocol

from apex_dagster.errors import DocumentRejected
from apex_dagster.extraction.decode import clean_json, clean_text, decode
from apex_dagster.records import Document

if TYPE_CHECKING:
    from kreuzberg import ExtractionResult

PARSE_TIMEOUT_S = 120
TITLE_CHARS_MAX = 200

TEXT, MARKDOWN, JSON, JSONL = "text/plain", "text/markdown", "application/json", "application/jsonl"
HTML, PDF = "text/html", "application/pdf"
OFFICE = "application/vnd.openxmlformats-officedocument"
DOCX = f"{OFFICE}.wordprocessingml.document"
CSV, TSV, PARQUET = "text/csv", "text/tab-separated-values", "application/vnd.apache.parquet"
MEDIA_TYPES = {
    ".txt": TEXT,
    ".text": TEXT,
    ".log": TEXT,
    "": TEXT,
    ".md": MARKDOWN,
    ".markdown": MARKDOWN,
    ".html": HTML,
    ".htm": HTML,
    ".xhtml": HTML,
    ".pdf": PDF,
    ".docx": DOCX,
    ".json": JSON,
    ".jsonl": JSONL,
    ".ndjson": JSONL,
    # What the parser gives for free
    ".pptx": f"{OFFICE}.presentationml.presentation",
    ".xlsx": f"{OFFICE}.spreadsheetml.sheet",
    ".odt": "application/vnd.oasis.opendocument.text",
    ".epub": "application/epub+zip",
    ".eml": "message/rfc822",
    ".rtf": "application/rtf",
    ".csv": CSV,
    ".tsv": TSV,
    ".parquet": PARQUET,
    ".xml": "application/xml",
    ".rst": "text/x-rst",
    ".org": "text/x-org",
}
ALIASES = {
    "application/x-ndjson": JSONL,
    "application/x-jsonlines": JSONL,
    "application/jsonlines": JSONL,
    "application/xhtml+xml": HTML,
    "text/x-markdown": MARKDOWN,
    "text/json": JSON,
    "text/xml": "application/xml",
    "text/rtf": "application/rtf",
    "application/x-parquet": PARQUET,
}
UNTOLD = frozenset({"", "application/octet-stream", "binary/octet-stream"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A document's text, and what its file says about itself."""

    text: str  # clean: see decode.clean_text
    title: str
    markdown: bool = False  # whether the text has Markdown's headings and tables
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Parser(Protocol):
    """Reads the text out of a file."""

    def parse(self, document: Document) -> Parsed:
        """Raises DocumentRejected, with the reason, for what cannot be read."""
        ...


class KreuzbergParser:
    """The default: txt, md, html, pdf, docx, pptx, xlsx, odt, epub, eml, rtf, csv and more."""

    def parse(self, document: Document) -> Parsed:
        kind = media_type(document)
        if kind in (TEXT, MARKDOWN):
            parsed = read_text(document, markdown=kind == MARKDOWN)
        else:
            parsed = read_file(document, kind)
        return parsed


def media_type(document: Document) -> str:
    """What `document` is: its stated media type if there is one, else by its name's suffix."""
    suffix = PurePath(document.name).suffix.lower()
    stated = (document.media_type or "").split(";")[0].strip().lower()
    kind = ALIASES.get(stated, stated)
    if kind in UNTOLD:
        kind = MEDIA_TYPES.get(suffix, "")
    if kind not in MEDIA_TYPES.values():
        readable = ", ".join(s.removeprefix(".") for s in MEDIA_TYPES if s)
        raise DocumentRejected(
            document.document_id,
            f"files of type {stated or suffix!r} are not read; send one of: {readable}",
        )
    return kind


def read_text(document: Document, *, markdown: bool) -> Parsed:
    text = clean_text(decode(document.content))
    metadata: dict[str, str] = {}
    if markdown and (front := re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)):
        pairs = re.findall(r"^(\w[\w -]*):[ \t]+(\S.*)$", front.group(1), re.MULTILINE)
        metadata = {key.lower(): value.strip(" \"'") for key, value in pairs}
        text = text[front.end() :]
    title = metadata.pop("title", "") or heading(text, markdown=markdown) or stem(document)
    return Parsed(text=text, title=title[:TITLE_CHARS_MAX], markdown=markdown, metadata=metadata)


def read_file(document: Document, kind: str) -> Parsed:
    markdown = kind in (DOCX, MEDIA_TYPES[".odt"], MEDIA_TYPES[".epub"])
    result = run_kreuzberg(document, kind, markdown=markdown)
    text = page_text(result) if kind == PDF else clean_text(result.content)
    if kind == PDF and not any(character.isalnum() for character in text):
        raise DocumentRejected(
            document.document_id,
            "the PDF holds no text: it is probably a scan; run OCR over it first",
        )
    told = clean_json({k: v for k, v in result.metadata.items() if k in ("authors", "created_at")})
    metadata = {key: value for key, value in told.items() if value}
    title = stated_title(result) or heading(text, markdown=markdown) or stem(document)
    return Parsed(text=text, title=title[:TITLE_CHARS_MAX], markdown=markdown, metadata=metadata)


def run_kreuzberg(document: Document, kind: str, *, markdown: bool) -> ExtractionResult:
    import kreuzberg

    try:
        return kreuzberg.extract_bytes_sync(document.content, kind, kreuzberg_config(markdown))
    except kreuzberg.ExtractionTimeoutError as error:
        reason = f"reading it took longer than {PARSE_TIMEOUT_S} s"
        raise DocumentRejected(document.document_id, reason) from error
    except kreuzberg.KreuzbergError as error:
        suffix = PurePath(document.name).suffix.lower() or kind
        detail = " ".join(str(error).split())[:300]
        reason = f"the {suffix} file cannot be read; it may be damaged or locked ({detail})"
        raise DocumentRejected(document.document_id, reason) from error


@functools.cache
def kreuzberg_config(markdown: bool) -> Any:
    import kreuzberg

    # Markdown for formats with real headings and tables only: from a PDF it invents headings, and
    # from HTML it keeps the cookie bar. Archive bombs are refused by the parser's own limits.
    config: Any = kreuzberg.ExtractionConfig(
        use_cache=False,  # the cache would be a folder in the user's home
        output_format="markdown" if markdown else "plain",
        extraction_timeout_secs=PARSE_TIMEOUT_S,
        pages=kreuzberg.PageConfig(extract_pages=True),
    )
    config.disable_ocr = True  # its models would be fetched from a hub
    return config


def page_text(result: ExtractionResult) -> str:
    """A PDF's pages in order. Not result.content: it repeats as text what it takes for a table."""
    pages = (page["content"] for page in result.pages or [])
    return join_lines(clean_text("\n".join(pages)))


def join_lines(text: str) -> str:
    """Undo a PDF's line wraps, and the hyphens at them, so that sentences are whole again.

    A PDF marks no paragraphs: one ends where a line is clearly shorter than the others and a
    sentence ends, or a new one could begin, as after a heading.
    """
    lines = [line.strip() for line in text.split("\n")]
    lengths = sorted(len(line) for line in lines if line)
    full = lengths[len(lengths) * 9 // 10] if lengths else 0
    paragraphs = [""]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        paragraphs[-1] = join_line(paragraphs[-1], line)
        opens = following[:1].isupper() or not following[:1].isalpha()
        if not line or (len(line) < 0.75 * full and (line[-1] in '.!?:”"' or opens)):
            paragraphs.append("")
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def join_line(paragraph: str, line: str) -> str:
    if re.search(r"[a-z][-\u00ad]$", paragraph) and line[:1].islower():
        return paragraph[:-1] + line
    return f"{paragraph} {line}".strip()


def stated_title(result: ExtractionResult) -> str:
    title = clean_text(str(result.metadata.get("title") or "")).strip()
    # What word processors and printers fill in by themselves.
    junk = re.search(r"^(untitled|microsoft word|document\d*$)|\.\w{2,4}$", title, re.IGNORECASE)
    return "" if junk else title


def heading(text: str, *, markdown: bool) -> str:
    """The text's first heading: marked as one, or a short first line with a blank line after it."""
    if markdown and (marked := re.search(r"^#{1,6} +(\S.*)$", text, re.MULTILINE)):
        return re.sub(r"[*_`]", "", marked.group(1)).strip(" #")
    first, _, rest = text.strip().partition("\n")
    return first.strip() if len(first) <= 120 and rest.startswith("\n") else ""


def stem(document: Document) -> str:
    """The file's name; one that is not UTF-8 on disk arrives with lone surrogates."""
    return clean_text(PurePath(document.name).stem) or document.document_id
