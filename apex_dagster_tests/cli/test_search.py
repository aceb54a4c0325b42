"""`apex search`: the same answers as over HTTP, from a shell."""

import pytest

from apex_dagster.cli.search import K_MAX, read_filter
from apex_dagster.embedded import ports
from apex_dagster.errors import InvalidInput
from apex_dagster.ingestion import search
from apex_dagster_tests.cli.conftest import Shell
from apex_dagster_tests.ingestion.searchable import ingest, text_of

BAKERY = "The bakery of Quillon sells [bold] bread with caraway on Fridays."
QUILLON = {"name": "Quillon", "type": "person"}


def test_json_is_what_http_gives(app, shell, unique):
    metadata = {"serial": 10**30}
    [saga] = ingest(app, text_of(unique, BAKERY, entities=[QUILLON], metadata=metadata))
    answer = shell.json("search", "Quillon's caraway bread", "--explain")
    [hit] = answer["hits"]
    assert (hit["document_id"], hit["saga_id"], hit["text"]) == (unique, saga.saga_id, BAKERY)
    assert hit["metadata"]["serial"] == 10**30
    assert set(hit["explanation"]) == set(answer["explanation"]["rankers"]) == set(search.RANKERS)
    assert answer["degraded"] == {}
    assert "explanation" not in shell.json("search", "caraway")


def test_a_table_shows_text_as_it_is(app, shell, unique):
    ingest(app, text_of(unique, BAKERY, entities=[QUILLON]))
    shown = shell("search", "Quillon's caraway bread")
    assert shown.exit_code == 0, shown.output
    assert unique in shown.stdout
    assert BAKERY in shown.stdout
    assert "#1" not in shown.stdout
    explained = shell("search", "Quillon's caraway bread", "--explain").stdout
    assert "text #1, vector #1, graph #1" in explained
    assert "graph: 1 candidates" in explained
    assert "Nothing that is live" in shell("search", "zeppelin", "--collection", "none").stdout


def test_filters_k_and_collection(app, shell, unique):
    for number in range(3):
        metadata = {"n": number, "name": f"no {number}", "text": str(number)}
        ingest(app, text_of(f"{unique}-{number}", BAKERY, metadata=metadata))
    ingest(app, text_of(f"{unique}-other", BAKERY, collection="other"))

    def found(*options):
        return {hit["document_id"][-1] for hit in shell.json("search", "caraway", *options)["hits"]}

    assert found("--filter", "n=1") == {"1"}
    assert found("--filter", "name=no 2") == {"2"}
    assert found("--filter", 'text="2"') == {"2"}
    assert found("--filter", "text=2") == set()
    assert found("--filter", "n=1", "--filter", "name=no 2") == set()
    assert found("--collection", "other") == {"r"}
    assert len(found("--k", "2")) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1", 1),
        ("a=1.5", 1.5),
        ("a=true", True),
        ('a="1"', "1"),
        ("a=b=c", "b=c"),
        ("a=", ""),
        ("a=[1]", "[1]"),
        ("a=null", "null"),
        ("a=NaN", "NaN"),
    ],
)
def test_values_of_filters_have_types(text, expected):
    assert read_filter(text) == ("a", expected)


@pytest.mark.parametrize("text", ["a", "=1", ""])
def test_a_filter_without_key_or_value_is_said_so(text):
    with pytest.raises(InvalidInput, match="KEY=VALUE"):
        read_filter(text)


def test_wrong_use_has_its_exit_code(app, shell):
    options = (["--k", "0"], ["--k", "101"], ["--filter", "b"])
    for arguments in ([" "], ["x" * 2000], ["12 " * 300], *(["a", *each] for each in options)):
        result = shell("search", *arguments)
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.output
    assert K_MAX == search.K_MAX


def test_a_store_that_is_down_is_named_and_the_rest_is_shown(app, shell, unique):
    ingest(app, text_of(unique, BAKERY))
    nobody = f"http://{ports.LOOPBACK}:{ports.choose(None)}"
    lame = Shell(environment={**shell.environment, "APEX_QDRANT_URL": nobody})
    result = lame("search", "caraway bread")
    assert result.exit_code == 1
    assert unique in result.stdout
    assert "vector is missing from this answer: qdrant cannot be reached" in result.stderr
    assert lame.json("search", "caraway", exit_code=1)["degraded"].keys() == {"vector"}
