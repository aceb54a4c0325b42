"""Files → text: encodings, formats, titles, and what is refused."""

from __future__ import annotations

import io
import zipfile

import pytest

from apex_dagster.errors import DocumentRejected
from apex_dagster.extraction.parse import KreuzbergParser, join_lines
from apex_dagster.extraction.passages import split_prose
from apex_dagster.samples import CORPUS
from apex_dagster_tests.extraction.conftest import Submit

PARSER = KreuzbergParser()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_text_is_decoded_whatever_its_encoding(encoding: str, submit: Submit):
    text = "“Café” costs 5 € – naïve."
    assert PARSER.parse(submit(text.encode(encoding))).text == text


def test_line_ends_are_line_feeds(submit: Submit):
    assert PARSER.parse(submit("a\r\nb\rc")).text == "a\nb\nc"


@pytest.mark.parametrize(
    ("content", "name", "title"),
    [
        ("# The *Long* Way\n\ntext", "a.md", "The Long Way"),
        ("---\ntitle: From the Front\nauthor: Me\n---\n# Other\n\ntext", "a.md", "From the Front"),
        ("A First Line\n\nand then text", "a.txt", "A First Line"),
        ("text that goes on\nand on", "my-note.txt", "my-note"),
        (
            "<html><head><title>In the Head</title></head><body><h1>No</h1><p>text",
            "a.html",
            "In the Head",
        ),
        ("<h1>Only a Heading</h1><p>text</p>", "a.html", "Only a Heading"),
    ],
)
def test_title(content: str, name: str, title: str, submit: Submit):
    assert PARSER.parse(submit(content, name)).title == title


def test_front_matter_becomes_metadata(submit: Submit):
    parsed = PARSER.parse(submit("---\ntitle: T\nauthor: 'Me'\n---\nBody.", "a.md"))
    assert (parsed.text, parsed.metadata) == ("Body.", {"author": "Me"})


def test_html_keeps_the_article_and_loses_scripts(submit: Submit):
    page = "<html><body><script>var x;</script><p>One &amp; two</p><style>p{}</style></body></html>"
    assert PARSER.parse(submit(page, "a.html")).text.strip() == "One & two"


def test_a_pdf_has_its_paragraphs_back_and_nothing_twice():
    from apex_dagster.records import Document

    path = CORPUS / "inquiry-1912.pdf"
    document = Document(document_id="d", name=path.name, content=path.read_bytes())
    text = PARSER.parse(document).text
    paragraphs = text.split("\n\n")
    assert "\n" not in text.replace("\n\n", "")
    assert {"The voyage", "The loss", "Findings"} <= set(paragraphs)
    assert text.count("It blames no officer.") == 1
    assert paragraphs[-1].endswith("he would have liked to see the crates.")


def test_words_hyphenated_at_a_line_end_are_whole_again():
    assert join_lines("The acqui-\nsition of a well-\nknown firm") == (
        "The acquisition of a wellknown firm"
    )


def test_a_table_in_docx_keeps_its_rows(submit: Submit):
    content = (CORPUS / "shipyard-order-book.docx").read_bytes()
    parsed = PARSER.parse(submit(content, "a.docx"))
    assert parsed.markdown
    assert "| Eleven turbines | Brightwater Energy | Kestrel Bay |" in parsed.text


def test_a_stated_media_type_wins_over_the_suffix(submit: Submit):
    page = "<p>Hello <b>there</b></p>"
    assert (
        "<" not in PARSER.parse(submit(page, "a.txt", media_type="text/html; charset=utf-8")).text
    )
    assert "<" in PARSER.parse(submit(page, "a.txt")).text


# Refusals

SCAN = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
    b"2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]>>endobj\n"
    b"xref\n0 4\n0000000000 65535 f \n0000000009 00000 n \n0000000052 00000 n \n"
    b"0000000101 00000 n \ntrailer<</Size 4/Root 1 0 R>>\nstartxref\n160\n%%EOF"
)


@pytest.mark.parametrize(
    ("content", "name", "reason"),
    [
        (SCAN, "a.pdf", "holds no text: it is probably a scan; run OCR"),
        (b"%PDF-1.7 broken", "a.pdf", r"the \.pdf file cannot be read"),
        (b"PK\x03\x04 broken", "a.docx", r"the \.docx file cannot be read"),
        (b"", "a.docx", r"the \.docx file cannot be read"),
        (b"MZ\x90", "setup.exe", r"files of type '\.exe' are not read; send one of: txt"),
        (b"PK", "all.zip", r"files of type '\.zip' are not read"),
    ],
)
def test_what_cannot_be_read_is_rejected_with_the_reason(
    content: bytes, name: str, reason: str, submit: Submit
):
    with pytest.raises(DocumentRejected, match=reason):
        PARSER.parse(submit(content, name))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text", ["# a" + " " * 300_000 + "b", "[" * 300_000, "# x\n" + "<" * 300_000, "](" * 150_000]
)
def test_no_pattern_runs_away(text: str, submit: Submit):
    parsed = PARSER.parse(submit(text, "a.md"))
    assert sum(len(readable) for readable, _ in split_prose(parsed.text)) > 0


def test_a_zip_bomb_is_refused_before_it_unpacks(submit: Submit):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        with archive.open("word/document.xml", "w", force_zip64=True) as part:
            for _ in range(200):
                part.write(b"<w:p>" * 200_000)  # 200 MB in all
    with pytest.raises(DocumentRejected, match="exceeds limit"):
        PARSER.parse(submit(packed.getvalue(), "bomb.docx"))
