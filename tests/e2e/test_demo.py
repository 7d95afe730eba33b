"""What a new user does first: ingest the examples, ask in two languages, look around."""

import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest

from shared.kinds.registry import KINDS
from tests.e2e.stack import ROOT, LiveStack

EXAMPLES = ROOT / "examples"
COLLECTION = "demo"
QUESTIONS = (
    ("How long are nightly backups kept?", "operations-handbook.md"),
    ("연차 휴가는 1년에 며칠인가요?", "휴가-규정.md"),
)


@pytest.fixture(scope="module")
def _ingested(live_stack: LiveStack) -> None:
    done = live_stack.sluice_json("ingest", "documents", "-c", COLLECTION, cwd=EXAMPLES)
    files = [path for path in (EXAMPLES / "documents").iterdir() if path.is_file()]
    counts = {"added": len(files), "replaced": 0, "skipped": 0, "failed": 0, "erased": 0}
    assert done["documents"] == counts
    assert done["collection_created"]
    assert done["uploaded_files"] == len(files)


@pytest.mark.usefixtures("_ingested")
@pytest.mark.parametrize(("question", "source"), QUESTIONS)
def test_a_question_gets_a_cited_answer(stack: LiveStack, question: str, source: str) -> None:
    shown = stack.sluice("ask", question, "--collection", COLLECTION)
    assert shown.code == 0, shown.err
    assert "[1]" in shown.out

    answer = stack.sluice_json("ask", question, "--collection", COLLECTION)
    assert answer["model"] == "extractive"
    markers = set(re.findall(r"\[\d+\]", answer["answer"]))
    cited = {citation["marker"]: citation for citation in answer["citations"]}
    assert markers
    assert markers <= {marker if marker.startswith("[") else f"[{marker}]" for marker in cited}
    assert any(citation["source"].endswith(source) for citation in cited.values())
    assert all(citation["text"] for citation in cited.values())


@pytest.mark.usefixtures("_ingested")
def test_ingesting_again_skips_all_and_uploads_nothing(stack: LiveStack) -> None:
    before = stack.vector_ids(COLLECTION)
    again = stack.sluice_json("ingest", "documents", "-c", COLLECTION, cwd=EXAMPLES)
    assert again["documents"]["skipped"] == sum(again["documents"].values())
    assert again["uploaded_files"] == 0
    assert stack.vector_ids(COLLECTION) == before
    stack.check_agreement(COLLECTION)


@pytest.mark.usefixtures("_ingested")
def test_search_and_the_lists_parse(stack: LiveStack) -> None:
    answer = stack.sluice_json("search", "nightly backups", "-c", COLLECTION)
    assert answer["hits"][0]["score"] == max(hit["score"] for hit in answer["hits"])
    listed = stack.sluice_json("documents", "-c", COLLECTION)["items"]
    assert {hit["document_id"] for hit in answer["hits"]} <= {document["id"] for document in listed}
    names = [collection["name"] for collection in stack.sluice_json("collections")["items"]]
    assert COLLECTION in names
    jobs = stack.sluice_json("jobs", "--kind", "ingest", "-c", COLLECTION)["items"]
    assert jobs[0]["state"] == "succeeded"


@pytest.mark.usefixtures("_ingested")
def test_the_commands_of_the_page_about_measuring_work(stack: LiveStack, tmp_path: Path) -> None:
    page = (ROOT / "docs/eval.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\$ sluice (eval examples/.*)$", page, re.MULTILINE)
    assert len(lines) == 2
    (tmp_path / "examples").symlink_to(EXAMPLES)
    for line in lines:
        report = stack.sluice_json(*shlex.split(line), cwd=tmp_path)
        assert report["query_count"] == 11
        assert report["warnings"] == []
        first = report["searches"][0]
        assert first["measures"]["recall@6"]["value"] > 0.5
        assert first["measures"]["answer@6"]["value"] > 0.5
    assert "연차 휴가는" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_changed_content_replaces_the_old(stack: LiveStack) -> None:
    """Through the CLI as it is by default: what a user edits is what is found afterwards."""
    folder = stack.home.parent / "edited"
    folder.mkdir()
    note = folder / "note.md"
    note.write_text("The harbour opens at seven.\n", encoding="utf-8")
    stack.sluice_json("ingest", "edited", "-c", "edited", cwd=folder.parent)
    note.write_text("The harbour opens at nine, but only in winter.\n", encoding="utf-8")
    again = stack.sluice_json("ingest", "edited", "-c", "edited", cwd=folder.parent)
    counts = {"added": 0, "replaced": 1, "skipped": 0, "failed": 0, "erased": 0}
    assert again["documents"] == counts
    stack.until_tidy("edited")
    stack.check_agreement("edited", chunks=1)
    hits = stack.sluice_json("search", "When does the harbour open?", "-c", "edited")["hits"]
    assert [hit["text"] for hit in hits] == ["The harbour opens at nine, but only in winter."]


def test_the_api_pages_need_no_other_server(stack: LiveStack) -> None:
    with stack.http() as http:
        page = http.get("/docs")
        assert page.status_code == 200
        references = _References()
        references.feed(page.text)
        assert references.urls
        for url in references.urls:
            assert url.startswith("/"), f"{url} is on another server"
            assert http.get(url).status_code == 200, url
        inline = "".join(references.inline)
        assert re.findall(r"https?://", inline) == []
        document = http.get("/openapi.json").json()
    posted = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    kinds = set(KINDS)
    assert set(posted["examples"]) == kinds


class _References(HTMLParser):
    """What a page loads, and its own scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"script", "link", "img", "iframe"}:
            self.urls += [value for name, value in attrs if name in {"src", "href"} and value]

    def handle_data(self, data: str) -> None:
        self.inline.append(data)
