"""`/v1/jobs`: finding, cancelling, redriving; positions."""

from collections.abc import Callable
from uuid import UUID

import httpx
import pytest

from api.schemas import EXAMPLES
from shared.database.transaction import Ledger
from shared.jobs import steps
from shared.jobs.claims import Claim
from tests.integration.answers import EMBED, problem


@pytest.mark.parametrize(
    "path", ["/v1/jobs/nonsense", "/v1/jobs/0198f2c4-0000-7000-8000-00000000dead"]
)
@pytest.mark.parametrize(("method", "suffix"), [
    ("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/retry"),
])  # fmt: skip
def test_an_unknown_job_is_404(api: httpx.Client, path: str, method: str, suffix: str) -> None:
    problem(api.request(method, path + suffix), 404)


class TestList:
    def test_pages_hold_every_job_once_newest_first(self, api: httpx.Client) -> None:
        ids = [api.post("/v1/jobs", json=EMBED).json()["id"] for _ in range(7)]

        seen: list[str] = []
        cursor: str | None = None
        while True:
            params = {"limit": "3"} | ({"cursor": cursor} if cursor else {})
            page = api.get("/v1/jobs", params=params).json()
            seen += [job["id"] for job in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break

        assert seen == ids[::-1]

    def test_filters(
        self, api: httpx.Client, claim: Callable[[str], Claim], ledger: Ledger
    ) -> None:
        api.put("/v1/collections/handbook")
        search = api.post("/v1/jobs", json=EXAMPLES["search"]["value"]).json()["id"]
        embed = api.post("/v1/jobs", json=EMBED).json()["id"]
        with ledger.begin() as session:
            steps.fail(session, claim("embed"), {"type": "X", "message": "broke"}, dead=True)

        def ids(**params: str) -> list[str]:
            return [job["id"] for job in api.get("/v1/jobs", params=params).json()["items"]]

        assert ids(kind="search") == ids(collection="handbook") == ids(state="queued") == [search]
        assert ids(dead="true") == ids(state="failed") == [embed]
        assert ids(kind="search", state="failed") == []

    @pytest.mark.parametrize("query", ["cursor=%%%", "cursor=bm9wZQ", "cursor=am9iczp4"])
    def test_a_bad_cursor_is_400(self, api: httpx.Client, query: str) -> None:
        assert "next_cursor" in problem(api.get(f"/v1/jobs?{query}"), 400)["detail"]

    @pytest.mark.parametrize("query", ["limit=0", "limit=201", "state=lost", "collection=%00aa"])
    def test_a_bad_parameter_is_422(self, api: httpx.Client, query: str) -> None:
        answer = problem(api.get(f"/v1/jobs?{query}"), 422)

        assert answer["errors"][0]["field"] == query.partition("=")[0]


class TestCancelAndRetry:
    def test_a_cancelled_job_stays_cancelled_until_it_is_redriven(
        self, api: httpx.Client, finish: Callable[..., Claim]
    ) -> None:
        job = api.post("/v1/jobs", json=EMBED).json()

        assert api.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelled"
        assert api.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelled"
        again = api.post(f"/v1/jobs/{job['id']}/retry").json()
        assert (again["state"], again["finished_at"]) == ("queued", None)
        finish("embed", {"model": "m"})
        assert api.get(f"/v1/jobs/{job['id']}").json()["result"] == {"model": "m"}

    def test_a_job_that_succeeded_cannot_be_redriven(
        self, api: httpx.Client, finish: Callable[..., Claim]
    ) -> None:
        job = api.post("/v1/jobs", json=EMBED).json()
        finish("embed", {})

        assert "succeeded" in problem(api.post(f"/v1/jobs/{job['id']}/retry"), 409)["detail"]

    def test_a_failed_job_shows_type_and_message(
        self, api: httpx.Client, claim: Callable[[str], Claim], ledger: Ledger
    ) -> None:
        job = api.post("/v1/jobs", json=EMBED).json()
        with ledger.begin() as session:
            steps.fail(session, claim("embed"), {"type": "Permanent", "message": "no", "x": 1})

        assert api.get(f"/v1/jobs/{job['id']}").json()["error"] == {
            "type": "Permanent",
            "message": "no",
        }


def test_position_and_eta_follow_the_queue(api: httpx.Client, finish: Callable[..., Claim]) -> None:
    ids = [UUID(api.post("/v1/jobs", json=EMBED).json()["id"]) for _ in range(3)]

    assert [api.get(f"/v1/jobs/{id_}").json()["position"] for id_ in ids] == [0, 1, 2]
    finish("embed", {})
    assert [api.get(f"/v1/jobs/{id_}").json()["position"] for id_ in ids] == [None, 0, 1]


def test_a_list_has_the_same_positions_as_the_jobs_one_by_one(api: httpx.Client) -> None:
    for lane in ["normal", "bulk", "interactive", "normal", "bulk", "normal"]:
        api.post("/v1/jobs", json=EMBED | {"lane": lane})

    listed = {job["id"]: job["position"] for job in api.get("/v1/jobs").json()["items"]}

    assert sorted(listed.values()) == list(range(6))
    assert listed == {id_: api.get(f"/v1/jobs/{id_}").json()["position"] for id_ in listed}
