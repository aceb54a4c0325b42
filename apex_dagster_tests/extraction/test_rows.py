"""Tables: a row becomes the JSON document that its sender would have written."""

from __future__ import annotations

import datetime
import io
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apex_dagster.errors import DocumentRejected
from apex_dagster.extraction import table
from apex_dagster.extraction.prepared import Refused
from apex_dagster.extraction.rows import Columns, Part, is_table, read_columns, row_documents
from apex_dagster_tests.extraction.conftest import Submit

Rows = Callable[..., list[Part]]


@pytest.fixture
def rows(submit: Submit) -> Rows:
    """The parts of a table, under the id `t`."""

    def read(content: str | bytes, name: str = "t.csv", **columns: Any) -> list[Part]:
        return row_documents(submit(content, name, document_id="t"), Columns(**columns))

    return read


def parquet(columns: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def fields(part: Part) -> Any:
    return orjson.loads(part.document.content)


class TestNames:
    def test_the_usual_names_need_no_mapping(self, rows: Rows):
        parts = rows(
            'ID,Title,Text,author,year\n17,One,"First, text.",Ada,1999\n18,,Second.,,2001\n'
        )
        assert [part.document.document_id for part in parts] == ["t#17", "t#18"]
        assert [fields(part) for part in parts] == [
            {
                "document_id": "17",
                "title": "One",
                "text": "First, text.",
                "metadata": {"author": "Ada", "year": 1999},
            },
            {"document_id": "18", "text": "Second.", "metadata": {"year": 2001}},
        ]
        assert {part.rejection for part in parts} == {None}

    def test_a_name_as_it_is_usual_wins_over_one_in_capitals(self, rows: Rows):
        for header in ("text,TEXT", "TEXT,text"):
            (part,) = rows(f"{header}\n{header}\n")
            assert fields(part) == {"text": "text", "metadata": {"TEXT": "TEXT"}}

    def test_without_ids_rows_go_by_their_numbers_which_empty_rows_keep(self, rows: Rows):
        parts = rows("content,tag\none,a\n,\nthree,c\n")
        assert [part.document.document_id for part in parts] == ["t#1", "t#3"]

    def test_a_mapping_names_columns_and_joins_texts_in_its_order(self, rows: Rows):
        parts = rows(
            "no,abstract,intro,kept,left\n1,A,B,k,l\n2,,B,k,l\n",
            id="no",
            text=("intro", "abstract"),
            metadata=("kept",),
        )
        assert [fields(part)["text"] for part in parts] == ["B\n\nA", "B"]
        assert fields(parts[0])["metadata"] == {"kept": "k"}

    def test_the_order_of_columns_makes_no_other_content(self, rows: Rows):
        (one,), (other,) = rows("id,text,a,b\n1,x,2,3\n"), rows("b,a,text,id\n3,2,x,1\n")
        assert one.document.content == other.document.content

    def test_rows_are_extracted_as_json_documents_are(self, rows: Rows, extractor):
        (part,) = rows(
            'id,title,text,year\n7,Copper,"Elena Marsh met Viktor Hansen in Oslo.",1911\n'
        )
        extraction = extractor.extract(part.document)
        assert (extraction.title, extraction.metadata) == ("Copper", {"year": 1911})
        assert "Elena Marsh met" in extraction.chunks[0].text

    @pytest.mark.parametrize(
        ("name", "expected"),
        [("a.csv", 1), ("a.TSV", 1), ("a.parquet", 1), ("a.txt", 0), ("a.x", 0)],
    )
    def test_the_suffix_makes_a_table(self, submit: Submit, name: str, expected: int):
        assert is_table(submit("", name)) == bool(expected)


class TestCsv:
    def test_leading_zeros_and_long_numbers_survive(self, rows: Rows):
        parts = rows("id,text,phone,isbn\n007,1e5,0049,9780000000000000000000\n")
        assert fields(parts[0]) == {
            "document_id": "007",
            "text": "1e5",
            "metadata": {"phone": "0049", "isbn": "9780000000000000000000"},
        }

    def test_columns_named_by_numbers_are_texts_like_others(self, rows: Rows):
        (part,) = rows("2024,text\n007,a\n", id="2024")
        assert part.document.document_id == "t#007"

    def test_a_column_is_typed_only_if_all_of_it_is(self, rows: Rows):
        parts = rows("text,n,x,flag,mixed\na,-1,1.50,TRUE,12\nb,2,3,false,12a\nc,,,,\n")
        assert [fields(part).get("metadata") for part in parts] == [
            {"n": -1, "x": 1.5, "flag": True, "mixed": "12"},
            {"n": 2, "x": 3.0, "flag": False, "mixed": "12a"},
            None,
        ]

    def test_words_that_pandas_takes_for_nothing_are_words(self, rows: Rows):
        (part,) = rows("text,country,name\nNone,NA,null\n")
        assert (fields(part)["text"], fields(part)["metadata"]) == (
            "None",
            {"country": "NA", "name": "null"},
        )

    @pytest.mark.parametrize("separator", [",", ";", "\t"])
    def test_the_header_tells_the_separator(self, rows: Rows, separator: str):
        name = "t.tsv" if separator == "\t" else "t.csv"
        (part,) = rows(f'id{separator}text\n1{separator}"a, b; c\td"\n', name)
        assert fields(part) == {"document_id": "1", "text": "a, b; c\td"}

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
    def test_encodings_are_those_of_texts(self, rows: Rows, encoding: str):
        (part,) = rows("id,text\r\nä,Größe\r\n".encode(encoding))
        assert fields(part) == {"document_id": "ä", "text": "Größe"}

    def test_line_ends_inside_a_cell_and_blank_lines_are_no_rows(self, rows: Rows):
        parts = rows('\r\nid,text\r\n1,"a\r\n\r\nb"\r\n\r\n2,c\r\n')
        assert [part.document.document_id for part in parts] == ["t#1", "t#2"]
        assert fields(parts[0])["text"].split() == ["a", "b"]

    def test_a_column_without_a_name_is_left_out(self, rows: Rows):
        (part,) = rows(",id,text\n0,a,b\n")  # as DataFrame.to_csv writes it
        assert fields(part) == {"document_id": "a", "text": "b"}


class TestParquet:
    def test_values_become_plain_json(self, rows: Rows):
        when = datetime.datetime(2026, 3, 1, 12, 30, tzinfo=datetime.UTC)
        content = parquet(
            {
                "id": pa.array([1, None, 3], pa.int64()),
                "text": ["one", "two", "three"],
                "year": pa.array([1999, None, 2001], pa.int16()),
                "x": pa.array([0.5, float("nan"), float("inf")], pa.float32()),
                "when": pa.array([when, None, None], pa.timestamp("us", "UTC")),
                "day": pa.array([when.date(), None, None], pa.date32()),
                "price": pa.array([Decimal("1.50"), None, None]),
                "good": pa.array([True, None, False]),
                "tags": pa.array([["a"], None, []]),
                "blob": pa.array([b"x", None, None]),
            }
        )
        parts = rows(content, "t.parquet")
        assert [part.document.document_id for part in parts] == ["t#1", "t#2", "t#3"]
        assert [fields(part).get("metadata") for part in parts] == [
            {
                "year": 1999,
                "x": 0.5,
                "when": "2026-03-01T12:30:00+00:00",
                "day": "2026-03-01",
                "price": 1.5,
                "good": True,
            },
            None,
            {"year": 2001, "good": False},
        ]

    def test_lists_and_objects_come_where_they_are_asked_for(self, rows: Rows):
        content = parquet({"text": ["one"], "tags": [["a", None]], "of": [{"k": 1.5}]})
        (part,) = rows(content, "t.parquet", metadata=("tags", "of"))
        assert fields(part)["metadata"] == {"tags": ["a", None], "of": {"k": 1.5}}

    def test_texts_that_were_written_as_categories_are_texts(self, rows: Rows):
        frame = pd.DataFrame({"text": ["a", "b"], "kind": pd.Categorical(["x", None])})
        buffer = io.BytesIO()
        frame.to_parquet(buffer)
        parts = rows(buffer.getvalue(), "t.parquet", text=("text", "kind"))
        assert [fields(part)["text"] for part in parts] == ["a\n\nx", "b"]

    def test_ids_that_became_floats_beside_missing_ones_are_whole_again(self, rows: Rows):
        parts = rows(parquet({"id": [17.0, None], "text": ["a", "b"]}), "t.parquet")
        assert [part.document.document_id for part in parts] == ["t#17", "t#2"]

    def test_a_named_index_is_a_column(self, rows: Rows):
        frame = pd.DataFrame({"text": ["a"]}, index=pd.Index(["x"], name="id"))
        buffer = io.BytesIO()
        frame.to_parquet(buffer)
        (part,) = rows(buffer.getvalue(), "t.parquet")
        assert part.document.document_id == "t#x"

    def test_what_unpacks_to_more_than_the_limit_is_refused(
        self, rows: Rows, monkeypatch: pytest.MonkeyPatch
    ):
        content = parquet({"text": ["the same"] * 1000})
        monkeypatch.setattr(table, "PARQUET_ROWS_MAX", 999)
        with pytest.raises(Refused, match=r"1,000 rows and .* the limits are 999 .* split it"):
            rows(content, "t.parquet")


class TestBadRows:
    def test_a_bad_row_is_rejected_alone(self, rows: Rows):
        parts = rows("id,text\n1,good one\n2,\n3,a,b,c\n4,good two\n" + "x" * 201 + ",long\n")
        assert [bool(part.rejection) for part in parts] == [False, True, True, False, True]
        reasons = [part.rejection for part in parts if part.rejection]
        assert "row 2: it has no text in column 'text': write one there" in reasons[0]
        assert "row 3: it has more fields than the 2 columns: quote a field" in reasons[1]
        assert "row 5: column 'id' must hold 1 to 200 printable characters" in reasons[2]

    def test_of_two_rows_with_one_id_the_later_goes_by_its_number_and_is_rejected(self, rows: Rows):
        parts = rows("id,text\n5,a\n5,b\n6,c\n")
        assert [part.document.document_id for part in parts] == ["t#5", "t#2", "t#6"]
        assert [bool(part.rejection) for part in parts] == [False, True, False]
        assert "row 2: row 1 has '5' in column 'id' as well" in str(parts[1].rejection)

    def test_a_number_that_is_another_rows_id_loses_no_row(self, rows: Rows):
        parts = rows("id,text\n2,a\n,b\n")
        assert len({part.document.document_id for part in parts}) == 2
        assert {part.rejection for part in parts} == {None}

    def test_a_row_without_text_that_is_released_is_rejected_again(self, rows: Rows, extractor):
        _, part = rows("id,text\n1,a\n2,\n")
        with pytest.raises(DocumentRejected, match="holds no text"):
            extractor.extract(part.document)


WRONG = [
    ("id,abstract\n1,a\n", {}, "no column is called text, content or body, there are 'id', 'abs"),
    (
        "id,text\n1,a\n",
        {"id": "no"},
        r"columns.id: there is no column 'no', but 'id', 'text': corr",
    ),
    ("id,text\n1,a\n", {"title": "x"}, r"columns.title: there is no column 'x'"),
    ("id,text\n1,a\n", {"text": ("text", "x")}, r"columns.text: there is no column 'x'"),
    ("id,text\n1,a\n", {"metadata": ("x",)}, r"columns.metadata: there is no column 'x'"),
    ("id,text,text\n1,a,b\n", {}, "the columns text are there more than once: rename"),
    ('id,text\n1,"a\n2,b\n', {}, r"cannot be read \(.*EOF inside string.*\): correct it"),
    ("", {}, "the table has no columns: the first line"),
    ("id,text\n1,a,b\n2,c,d\n", {}, "each row has more fields than the 2 columns: name them"),
]


@pytest.mark.parametrize(("content", "columns", "reason"), WRONG, ids=[w[2][:30] for w in WRONG])
def test_a_table_of_which_no_row_can_be_used_is_refused(
    rows: Rows, content: str, columns: dict[str, Any], reason: str
):
    with pytest.raises(Refused, match=reason):
        rows(content, **columns)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet file at all"])
def test_a_damaged_parquet_file_is_refused(rows: Rows, content: bytes):
    with pytest.raises(Refused, match="the table cannot be read"):
        rows(content, "t.parquet")


def test_a_truncated_parquet_file_is_refused(rows: Rows):
    content = bytearray(parquet({"text": [f"{n} words of its own" for n in range(500)]}))
    content[10:400] = bytes(390)
    with pytest.raises(Refused, match="the table cannot be read"):
        rows(bytes(content), "t.parquet")


def test_a_text_that_is_no_utf_8_is_refused_with_its_column(rows: Rows):
    offsets, letters = pa.py_buffer(b"\x00\x00\x00\x00\x02\x00\x00\x00"), pa.py_buffer(b"\xff\xfe")
    column = pa.StringArray.from_buffers(1, offsets, letters)
    with pytest.raises(Refused, match="column 'text' cannot be read"):
        rows(parquet({"text": column}), "t.parquet")


def test_columns_that_hold_no_texts_are_refused(rows: Rows):
    with pytest.raises(Refused, match="column 'text' holds lists or objects"):
        rows(parquet({"text": [["a"]]}), "t.parquet")
    with pytest.raises(Refused, match="column 'b' holds bytes, which JSON has not"):
        rows(parquet({"text": ["a"], "b": [b"x"]}), "t.parquet", metadata=("b",))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_a_refused_table_that_is_released_is_rejected_again(submit: Submit, extractor, suffix: str):
    """Of a file that was refused whole the ledger keeps no content: the inbox has it."""
    with pytest.raises(DocumentRejected):
        extractor.extract(submit(b"", f"t.{suffix}"))


class TestMapping:
    def test_all_members(self):
        stated = {"id": "a", "title": "b", "text": "c", "metadata": ["d", "e"]}
        assert read_columns(stated) == Columns(id="a", title="b", text=("c",), metadata=("d", "e"))
        assert read_columns({"text": ["c", "d"]}).text == ("c", "d")
        assert read_columns({}) == Columns()
        assert read_columns({"metadata": []}).metadata == ()

    @pytest.mark.parametrize(
        ("stated", "reason"),
        [
            ([], "columns: expected an object, not a list"),
            ({"body": "x"}, "columns.body: is unknown; use id, title, text, metadata"),
            ({"id": 3}, "columns.id: expected a text, not a number"),
            ({"text": 3}, "columns.text: expected a list, not a number"),
            ({"text": []}, "columns.text: names no column"),
            ({"metadata": "x"}, "columns.metadata: expected a list, not a text"),
            ({"metadata": [1]}, "columns.metadata: must hold names of columns only"),
        ],
    )
    def test_a_wrong_member_is_named(self, stated: Any, reason: str):
        with pytest.raises(Refused, match=reason):
            read_columns(stated)


def test_pandas_is_imported_by_nobody_who_reads_no_table():
    code = (
        "import sys, apex_dagster.ingestion.sources, apex_dagster.extraction.rows\n"
        "sys.exit(', '.join({'pandas', 'pyarrow'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (0, "")
