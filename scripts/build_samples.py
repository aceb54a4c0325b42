"""Build the PDF and DOCX files of the sample corpus from scripts/samples/*.md.

    pip install fpdf2==2.8.9 python-docx==1.2.0
    python scripts/build_samples.py

The source's name says the format: `a.pdf.md` becomes `a.pdf`. Only the Markdown these sources use
is understood: headings, paragraphs, "- " items and tables. The outputs are committed.
"""

from __future__ import annotations

import io
import zipfile
from datetime import UTC, datetime
from pathlib import Path

from docx import Document as WordDocument
from fpdf import FPDF

SOURCES = Path(__file__).parent / "samples"
CORPUS = Path(__file__).parents[1] / "apex_dagster" / "samples" / "corpus"
WRITTEN_AT = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)  # fixed, so that a rebuild changes nothing


def main() -> None:
    for source in sorted(SOURCES.glob("*.md")):
        target = CORPUS / source.name.removesuffix(".md")
        write = {".pdf": write_pdf, ".docx": write_docx}[target.suffix]
        write(source.read_text("utf-8").strip().split("\n\n"), target)
        print(f"{target.name}: {target.stat().st_size:,} bytes")  # noqa: T201


def write_pdf(blocks: list[str], target: Path) -> None:
    pdf = FPDF(format="A4")
    pdf.set_creation_date(WRITTEN_AT)
    pdf.set_title(blocks[0].removeprefix("# "))
    pdf.add_page()
    for block in blocks:
        marks = len(block) - len(block.lstrip("#"))
        style, size = ("B", 16 - 2 * marks) if marks else ("", 10)
        pdf.set_font("Helvetica", style, size)
        pdf.multi_cell(0, size * 0.55, block.lstrip("# "), align="L")
        pdf.ln(8)
    pdf.output(str(target))


def write_docx(blocks: list[str], target: Path) -> None:
    word = WordDocument()
    word.core_properties.author = ""
    word.core_properties.title = blocks[0].removeprefix("# ")
    word.core_properties.created = word.core_properties.modified = WRITTEN_AT
    for block in blocks:
        marks = len(block) - len(block.lstrip("#"))
        if marks:
            word.add_heading(block.lstrip("# "), level=marks)
        elif block.startswith("|"):
            add_table(word, block)
        elif block.startswith("- "):
            for item in block.split("\n"):
                word.add_paragraph(item.removeprefix("- "), style="List Bullet")
        else:
            word.add_paragraph(block)
    buffer = io.BytesIO()
    word.save(buffer)
    with zipfile.ZipFile(buffer) as written, zipfile.ZipFile(target, "w") as fixed:
        for name in written.namelist():
            entry = zipfile.ZipInfo(name, WRITTEN_AT.timetuple()[:6])
            fixed.writestr(entry, written.read(name), zipfile.ZIP_DEFLATED)


def add_table(word: WordDocument, block: str) -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.split("\n")]
    del rows[1]  # the line of dashes
    table = word.add_table(rows=0, cols=len(rows[0]))
    for row in rows:
        for cell, text in zip(table.add_row().cells, row, strict=True):
            cell.text = text


if __name__ == "__main__":
    main()
