"""A collection changes its model while it is searched and filled, in peace and under fire.

    python -m tests.e2e.switch_faults --documents 1000 --clients 16 --seeds 3

starts a stack of its own and a second embedding model (`second_model.py`). Clients search all the
time. The collection changes to the second model while documents are ingested, replaced and erased,
and goes back; once in peace, and once for each seed while the API, the CPU worker, its pool, Chroma
and Redis are killed at seeded moments. It prints figures for each run, and ends with 1 if a search
failed, had hits of two models or a score that is not its model's, or showed what was erased; or if
a run ended with other documents, vectors or answers than the one in peace.
"""

import argparse
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any, Final, Literal

import numpy as np

from shared.config import DEFAULT_EMBEDDING_MODEL
from sluice import Client, Hit, Job, NotFound, Retries
from tests.e2e import second_model
from tests.e2e.processes import until
from tests.e2e.stack import QUICK, LiveStack, temporary_stack

SECOND_MODEL: Final = "switch/minilm-pca"
DIMENSION: Final = 128
SAMPLE_TEXTS: Final = 160
K: Final = 5
CHANGES: Final = 4
ADDED, REPLACED, ERASED = 12, 3, 3
"""Documents of each change."""
PARTS: Final = ("api", "cpu", "pool", "chroma", "redis")
AT_SWITCH: Final = "cpu at the switch"
"""The worker as well, when ingestion waits for the switch."""
TOLERANCE: Final = 0.01
"""Of cosines, which depend a little on what shares a batch with a text."""
PATIENT: Final = Retries(connect_for_s=240, retry_for_s=240)
DEADLINE_S: Final = 3600.0
LOOK_S: Final = 0.03
EMBEDDED_AT_ONCE: Final = 200

PLACES: Final = (
    "museum", "bakery", "library", "harbour", "swimming pool", "theatre", "observatory", "market",
    "botanical garden", "post office", "ice rink", "planetarium", "bicycle shop", "town hall",
    "zoo", "railway station", "hospital", "cinema", "climbing hall", "concert hall", "aquarium",
    "brewery", "castle", "ferry terminal", "flower shop", "gallery", "lighthouse", "music school",
    "pharmacy", "riding school", "sawmill", "ski lift", "tea house", "university", "vineyard",
    "watchmaker", "windmill", "youth hostel", "fire brigade", "car workshop",
)  # fmt: skip
TOWNS: Final = (
    "Busan", "Daegu", "Incheon", "Jeonju", "Suwon", "Hamburg", "Leipzig", "Freiburg", "Rostock",
    "Lyon", "Nantes", "Lille", "Porto", "Braga", "Seville", "Bilbao", "Turin", "Verona", "Graz",
    "Linz", "Basel", "Geneva", "Ghent", "Antwerp", "Utrecht", "Leiden", "Aarhus", "Odense",
    "Bergen", "Oslo", "Uppsala", "Turku", "Tallinn", "Riga", "Vilnius", "Krakow", "Gdansk", "Brno",
    "Prague", "Szeged", "Sofia", "Athens", "Patras", "Izmir", "Ankara", "Haifa", "Cairo", "Tunis",
    "Rabat", "Lima", "Cusco", "Quito", "Bogota", "Montreal", "Boston", "Denver", "Osaka", "Kyoto",
    "Nagoya", "Perth",
)  # fmt: skip
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A document of one chunk, and a question that it answers."""

    name: str
    text: str
    question: str


def facts(count: int) -> list[Fact]:
    """The same ones in every run."""
    rng = random.Random(0)
    pairs = list(product(PLACES, TOWNS))
    rng.shuffle(pairs)
    assert count <= len(pairs), f"there are {len(pairs)} documents"
    return [_fact(n, place, town, rng) for n, (place, town) in enumerate(pairs[:count])]


def _fact(n: int, place: str, town: str, rng: random.Random) -> Fact:
    opens, closes = rng.randint(6, 11), rng.randint(15, 22)
    text = (
        f"The {place} of {town} opens at {opens} in the morning and closes at {closes}:00. It is "
        f"closed on {rng.choice(DAYS)}. Visitors pay {rng.randint(2, 30)} coins, children half."
    )
    return Fact(
        name=f"fact-{n}", text=text, question=f"When does the {place} in {town} open its doors?"
    )


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What lies in the collection at first, and what becomes of it meanwhile."""

    first: Sequence[Fact]
    questions: Sequence[Fact]
    """Those that are asked about, which stay as they are."""
    added: Sequence[Fact]
    replaced: Mapping[str, str]
    """New texts, by the names of documents."""
    erased: Sequence[str]

    @classmethod
    def of(cls, documents: int, *, questions: int) -> "Corpus":
        made = facts(documents + CHANGES * ADDED)
        first, added = made[:documents], made[documents:]
        names = random.Random(1).sample(
            [fact.name for fact in first[questions:]], CHANGES * (REPLACED + ERASED)
        )
        texts = {fact.name: fact.text for fact in first}
        replaced = names[: CHANGES * REPLACED]
        return cls(
            first=first,
            questions=first[:questions],
            added=added,
            replaced={name: f"{texts[name]} Dogs stay outside." for name in replaced},
            erased=names[CHANGES * REPLACED :],
        )

    @property
    def changed(self) -> set[str]:
        return {*self.replaced, *self.erased, *(fact.name for fact in self.added)}

    @property
    def texts(self) -> dict[str, str]:
        """What is there in the end, by the names of documents."""
        texts = {fact.name: fact.text for fact in (*self.first, *self.added)}
        texts |= self.replaced
        return {name: text for name, text in texts.items() if name not in self.erased}


@dataclass(frozen=True, kw_only=True)
class Found:
    """A hit; `similarity` is its cosine, None if it had no vector."""

    source: str
    text: str
    similarity: float | None


@dataclass(frozen=True, kw_only=True)
class Answer:
    question: str
    began: float
    took_s: float
    places: frozenset[tuple[str, str]]
    """The indexes that its hits say, each with its model."""
    hits: Sequence[Found]


@dataclass(kw_only=True)
class Searchers:
    """Threads that search all the time, with a pause of a second on average."""

    stack: LiveStack
    collection: str
    questions: Sequence[Fact]
    count: int
    answers: list[Answer] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        stop = threading.Event()
        threads = [threading.Thread(target=self._search, args=(n, stop)) for n in range(self.count)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def _search(self, number: int, stop: threading.Event) -> None:
        rng = random.Random(number)
        with Client(self.stack.noted.api_url, retries=PATIENT) as client:
            while not stop.wait(rng.uniform(0, 2)):
                fact = rng.choice(self.questions)
                began = time.monotonic()
                try:
                    answer = ask(client, self.collection, fact.question, rng.choice(TYPES))
                except Exception as error:
                    self.errors.append(f"{type(error).__name__}: {error}")
                else:
                    self.answers.append(answer)
                    continue
                self.errors[-1] += f" (after {time.monotonic() - began:.1f} s)"

    def between(self, first: float, last: float) -> list[Answer]:
        """The answers of what was asked between two moments."""
        return [answer for answer in self.answers if first <= answer.began < last]


SearchType = Literal["similarity", "hybrid"]
TYPES: Final[tuple[SearchType, ...]] = ("similarity", "hybrid")


def ask(client: Client, collection: str, question: str, type_: SearchType) -> Answer:
    began = time.monotonic()
    hits = client.search(collection, question, k=K, search={"type": type_, "debug": True})
    return _answer(question, hits, began, time.monotonic() - began)


def _answer(question: str, hits: Sequence[Hit], began: float, took_s: float) -> Answer:
    notes = [hit.debug or {} for hit in hits]
    return Answer(
        question=question,
        began=began,
        took_s=took_s,
        places=frozenset((str(n.get("index")), str(n.get("embedding_model"))) for n in notes),
        hits=[
            Found(source=hit.source, text=hit.text, similarity=note.get("similarity"))
            for hit, note in zip(hits, notes, strict=True)
        ],
    )


class Cosines:
    """Of questions and texts in both models, by vectors of `embed` jobs; each made once."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._vectors: dict[tuple[str, str], Any] = {}

    def learn(self, texts: set[str]) -> None:
        for model in (DEFAULT_EMBEDDING_MODEL, SECOND_MODEL):
            new = sorted(text for text in texts if (model, text) not in self._vectors)
            for first in range(0, len(new), EMBEDDED_AT_ONCE):
                part = new[first : first + EMBEDDED_AT_ONCE]
                vectors = self._client.embed(part, model=model).embeddings
                for text, vector in zip(part, vectors, strict=True):
                    self._vectors[model, text] = np.array(vector)

    def of(self, model: str, question: str, text: str) -> float:
        return float(self._vectors[model, question] @ self._vectors[model, text])


def mixed(answers: Sequence[Answer], cosines: Cosines) -> tuple[list[str], int]:
    """What is wrong with answers: hits of two indexes, or a score that is not the model's; and how
    many answers could be of one model only, by their scores."""
    cosines.learn({text for one in answers for text in (one.question, *(h.text for h in one.hits))})
    wrong, told_apart = [], 0
    for answer in answers:
        if len(answer.places) != 1 or len(answer.hits) != K:
            wrong.append(f"{answer.question}: {sorted(answer.places)}, {len(answer.hits)} hits")
            continue
        ((_, model),) = answer.places
        fits = {
            name: all(
                hit.similarity is not None
                and abs(hit.similarity - cosines.of(name, answer.question, hit.text)) <= TOLERANCE
                for hit in answer.hits
            )
            for name in (DEFAULT_EMBEDDING_MODEL, SECOND_MODEL)
        }
        if not fits[model]:
            wrong.append(f"{answer.question}: no scores of {model}: {answer.hits}")
        told_apart += sum(fits.values()) == 1
    return wrong, told_apart


@dataclass(kw_only=True)
class Changes:
    """Documents that are ingested, replaced and erased while the collection changes its model."""

    stack: LiveStack
    collection: str
    corpus: Corpus
    erased_at: dict[str, float] = field(default_factory=dict)
    """When the erasure had ended, by the names of documents."""
    errors: list[str] = field(default_factory=list)

    def run(self, may_begin: Callable[[int], bool]) -> None:
        """Make all changes; each waits until it may begin."""
        try:
            with Client(self.stack.noted.api_url, retries=PATIENT) as client:
                for n in range(CHANGES):
                    until(partial(may_begin, n), f"change {n}", DEADLINE_S)
                    self._change(client, n)
        except Exception as error:
            self.errors.append(f"{type(error).__name__}: {error}")

    def _change(self, client: Client, n: int) -> None:
        corpus = self.corpus
        texts = {fact.name: fact.text for fact in corpus.added[n * ADDED : (n + 1) * ADDED]}
        replaced = list(corpus.replaced.items())[n * REPLACED : (n + 1) * REPLACED]
        report = client.ingest(self.collection, texts=texts | dict(replaced), on_existing="replace")
        counts = report.documents
        assert (counts.added, counts.replaced) == (ADDED, REPLACED), report
        for name in corpus.erased[n * ERASED : (n + 1) * ERASED]:
            (chunk,) = client.find_chunks(self.collection, sources=[name])
            # Where the API was killed behind the erasure, the same request again finds nothing.
            with suppress(NotFound):
                client.delete_document(str(chunk.document_id))
            self.erased_at[name] = time.monotonic()


@dataclass(kw_only=True)
class Outcome:
    """What a run came to. Times in seconds."""

    peace_s: tuple[float, float]
    switch_s: tuple[float, float]
    after_s: tuple[float, float]
    rollback_s: tuple[float, float]
    rebuild: Job
    answers: dict[str, list[Answer]]
    """Of all questions, with the first model, with the second one, and with the first one again."""
    searchers: Searchers
    wrong: list[str]
    told_apart: int
    killed: list[str]


class Run:
    """One collection, from its first document until it has gone back to its first model."""

    def __init__(
        self, stack: LiveStack, name: str, corpus: Corpus, *, clients: int, calm_s: float
    ) -> None:
        self._stack = stack
        self._name = name
        self._corpus = corpus
        self._calm_s = calm_s
        self._searchers = Searchers(
            stack=stack, collection=name, questions=corpus.questions, count=clients
        )
        self._changes = Changes(stack=stack, collection=name, corpus=corpus)
        self.killed: list[str] = []

    def go(
        self, rng: random.Random, *, parts: Sequence[str] = (), parts_back: Sequence[str] = ()
    ) -> Outcome:
        """`parts` are killed during the change to the second model, and `parts_back` on the way
        back, at moments that `rng` says."""
        stack, name = self._stack, self._name
        stack.value("SELECT 1")  # connected before several threads ask
        with Client(stack.noted.api_url, retries=PATIENT) as client:
            client.put_collection(name)
            client.ingest(name, texts={fact.name: fact.text for fact in self._corpus.first})
            answers = {"first": self._ask_all(client)}
            with self._searchers.at_work():
                peace_s = self._calm()
                began = time.monotonic()
                judged = [
                    {"query": one.question, "relevant": [one.name]}
                    for one in self._corpus.questions
                ]
                job = client.rebuild_collection(
                    name, model=SECOND_MODEL, queries=judged, k=K, wait=False
                )
                changing = threading.Thread(
                    target=self._changes.run, args=(self._reached(job.id, 0.8),)
                )
                changing.start()
                self._disturb(job.id, rng, parts)
                rebuild = client.wait(job.id).require_success()
                changing.join()
                switch_s = (began, time.monotonic())
                self._stack.until_whole()
                after_s = self._calm()
                answers["second"] = self._ask_all(client)
                wrong = self._agreement(f"{name}.2")
                began = time.monotonic()
                back = client.rebuild_collection(name, rollback=True, wait=False)
                self._disturb(back.id, rng, parts_back)
                client.wait(back.id).require_success()
                rollback_s = (began, time.monotonic())
                self._stack.until_whole()
                answers["back"] = self._ask_all(client)
                self._calm()
            wrong += self._agreement(name)
            wrong += self._searchers.errors + self._changes.errors + self._shown_again()
            wrong += self._documents()
            found, told_apart = mixed(
                [*self._searchers.answers, *(one for row in answers.values() for one in row)],
                Cosines(client),
            )
            wrong += found
            wrong += self._models(answers)
            wrong += differences(answers["first"], answers["back"], without=self._corpus.changed)
        return Outcome(
            peace_s=peace_s, switch_s=switch_s, after_s=after_s, rollback_s=rollback_s,
            rebuild=rebuild, answers=answers, searchers=self._searchers, wrong=wrong,
            told_apart=told_apart, killed=self.killed,
        )  # fmt: skip

    def _calm(self) -> tuple[float, float]:
        """Let the searchers work for a while."""
        began = time.monotonic()
        time.sleep(self._calm_s)
        return began, time.monotonic()

    def _ask_all(self, client: Client) -> list[Answer]:
        """The answers to all questions, by one job."""
        questions = [fact.question for fact in self._corpus.questions]
        began = time.monotonic()
        rows = client.search_many(
            self._name, questions, k=K, search={"type": "similarity", "debug": True}
        )
        took_s = time.monotonic() - began
        return [
            _answer(question, hits, began, took_s)
            for question, hits in zip(questions, rows, strict=True)
        ]

    def _reached(self, job_id: str, share: float) -> Callable[[int], bool]:
        """Whether the job is so far that the nth change may begin; the last one at `share`."""

        def may_begin(n: int) -> bool:
            return self._progress(job_id) >= share * n / CHANGES

        return may_begin

    def _progress(self, job_id: str) -> float:
        """Which part of a job is done; 1 at its end."""
        ((done, total, has_ended),) = self._stack.sql(
            "SELECT progress_done, progress_total, finished_at IS NOT NULL FROM jobs WHERE id = %s",
            job_id,
        )
        return 1.0 if has_ended else min(1.0, (done or 0) / total) if total else 0.0

    def _is_closing(self) -> bool:
        """Whether the switch is about to happen: ingestion waits for it."""
        return bool(
            self._stack.value(
                "SELECT count(*) FROM vector_indexes WHERE paused_until > now() AND collection_id "
                "= (SELECT id FROM collections WHERE name = %s)",
                self._name,
            )
        )

    def _disturb(self, job_id: str, rng: random.Random, parts: Sequence[str]) -> None:
        """Kill parts while the job runs."""
        plan = sorted((rng.uniform(0.02, 0.9), part) for part in parts if part != AT_SWITCH)
        is_to_close = AT_SWITCH in parts
        while not self._stack.value("SELECT finished_at FROM jobs WHERE id = %s", job_id):
            if plan and self._progress(job_id) >= plan[0][0]:
                self._strike(plan.pop(0)[1])
            elif is_to_close and self._is_closing():
                is_to_close = False
                self._strike(AT_SWITCH)
            time.sleep(LOOK_S)

    def _strike(self, part: str) -> None:
        if part == "pool":
            self._stack.kill_pool()
        elif part == "redis":
            self._stack.lose_redis()
        elif part in ("cpu", AT_SWITCH):
            self._stack.kill("cpu-1", group=True)
        else:
            self._stack.kill(part)
        self.killed.append(part)

    # What has to hold

    def _agreement(self, index: str) -> list[str]:
        """How the vectors of an index differ from the ledger."""
        self._stack.until_tidy(self._name)
        ledger = set(self._stack.ledger_ids(self._name))
        vectors = set(self._stack.vector_ids(index))
        return [] if ledger == vectors else [f"{index}: {len(ledger ^ vectors)} chunks differ"]

    def _documents(self) -> list[str]:
        rows = self._stack.sql(
            "SELECT d.source, k.text FROM documents d JOIN collections c ON c.id = d.collection_id "
            "JOIN chunks k ON k.version_id = d.live_version_id WHERE c.name = %s",
            self._name,
        )
        differ = dict(rows).items() ^ self._corpus.texts.items()
        return [f"documents differ: {sorted(differ)[:4]}"] if differ else []

    def _shown_again(self) -> list[str]:
        """Hits of what was erased before their search began."""
        erased_at = self._changes.erased_at
        return [
            f"{hit.source} was shown after its erasure"
            for answer in self._searchers.answers
            for hit in answer.hits
            if answer.began > erased_at.get(hit.source, answer.began)
        ]

    def _models(self, answers: Mapping[str, Sequence[Answer]]) -> list[str]:
        """Which answers are of another index than they should be."""
        places = {
            "first": (self._name, DEFAULT_EMBEDDING_MODEL),
            "second": (f"{self._name}.2", SECOND_MODEL),
            "back": (self._name, DEFAULT_EMBEDDING_MODEL),
        }
        return [
            f"{when}: {sorted(one.places)}"
            for when, row in answers.items()
            for one in row
            if one.places != {places[when]}
        ]


def differences(
    one: Sequence[Answer], other: Sequence[Answer], *, without: Set[str] = frozenset()
) -> list[str]:
    """The questions with other best passages, apart from these documents, and from passages whose
    scores are as good as those of the last one."""
    wrong = []
    for mine, theirs in zip(one, other, strict=True):
        scores = [
            {h.source: h.similarity or 0.0 for h in answer.hits if h.source not in without}
            for answer in (mine, theirs)
        ]
        # Documents that are new push others out behind them; the worse of both ends is the bound.
        bound = max(min(score.values(), default=1.0) for score in scores) + TOLERANCE
        best = [{name for name, score in row.items() if score > bound} for row in scores]
        shared = scores[0].keys() & scores[1].keys()
        is_off = any(abs(scores[0][name] - scores[1][name]) > TOLERANCE for name in shared)
        if best[0] - scores[1].keys() or best[1] - scores[0].keys() or is_off:
            wrong.append(f"{mine.question}: {scores[0]} is now {scores[1]}")
    return wrong


def times(answers: Sequence[Answer]) -> str:
    if not answers:
        return "none"
    p50, p99 = np.percentile([1000 * answer.took_s for answer in answers], (50, 99))
    return f"{len(answers)} searches, p50 {p50:.0f} ms, p99 {p99:.0f} ms"


def report(name: str, outcome: Outcome, chunks: int) -> str:
    searchers, job = outcome.searchers, outcome.rebuild
    comparison = (job.result or {})["comparison"]
    began, ended = outcome.switch_s
    assert job.started_at is not None
    assert job.finished_at is not None
    took_s = (job.finished_at - job.started_at).total_seconds()
    lines = [
        f"{name}: {'WRONG' if outcome.wrong else 'right'}; {chunks:,} chunks; killed: "
        f"{', '.join(outcome.killed) or 'nothing'}",
        f"  before: {times(searchers.between(*outcome.peace_s))}",
        f"  rebuild, {took_s:.0f} s, with all changes {ended - began:.0f} s: "
        f"{times(searchers.between(began, ended))}",
        f"  after: {times(searchers.between(*outcome.after_s))}",
        f"  rollback, {outcome.rollback_s[1] - outcome.rollback_s[0]:.0f} s: "
        f"{times(searchers.between(*outcome.rollback_s))}",
        f"  overlap@{comparison['k']} {comparison['overlap']}, recall@{comparison['k']} "
        f"{comparison['recall_before']} before, {comparison['recall']} after",
        f"  {len(searchers.answers)} answers of {searchers.count} clients, {len(searchers.errors)} "
        f"errors, {outcome.told_apart} told apart by their scores",
    ]
    kinds = Counter(line.partition(":")[0] for line in outcome.wrong)
    lines += [f"  {line[:400]}" for line in (*outcome.wrong[:5], f"{kinds}" if kinds else "")]
    return "\n".join(line for line in lines if line.strip())


def prepare(stack: LiveStack) -> None:
    """Make the second model, unless it is there."""
    folder = stack.home / "models" / SECOND_MODEL
    if folder.exists():
        return
    with stack.client() as client:
        made = facts(SAMPLE_TEXTS)
        sample = [fact.text if n % 2 else fact.question for n, fact in enumerate(made)]
        vectors = client.embed(sample, model=DEFAULT_EMBEDDING_MODEL).embeddings
    second_model.make(folder, vectors, DIMENSION)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=1000, help="of one chunk each")
    parser.add_argument("--questions", type=int, default=100, help="that are asked")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--faults", type=int, default=6, help="how often something is killed")
    parser.add_argument("--calm-s", type=float, default=30, help="before and after each switch")
    given = parser.parse_args()
    least = given.questions + CHANGES * (REPLACED + ERASED)
    if given.documents < least:
        parser.error(f"--documents: at least {least}, for some are replaced and some erased.")
    settings = {
        **QUICK,
        "SLUICE_WORKER_CONCURRENCY": "2",
        "SLUICE_EMBED_STEP_CHUNKS": "32",
        "SLUICE_MAX_ATTEMPTS": "10",  # each kill costs those an attempt that run
    }
    failed = 0
    with temporary_stack("sluice-switch-", settings) as stack:
        corpus = Corpus.of(given.documents, questions=given.questions)
        prepare(stack)
        peace: Outcome | None = None
        for seed in (None, *range(given.seeds)):
            name = "peace" if seed is None else f"seed-{seed}"
            run = Run(stack, name, corpus, clients=given.clients, calm_s=given.calm_s)
            rng = random.Random(seed)
            parts: list[str] = []
            if seed is not None:
                parts = [*(list(PARTS) * given.faults)[: given.faults], AT_SWITCH]
                rng.shuffle(parts)
            outcome = run.go(rng, parts=parts, parts_back=parts[: len(parts) // 3])
            peace = peace or outcome
            for when, row in peace.answers.items():
                outcome.wrong += differences(row, outcome.answers[when])
            failed += bool(outcome.wrong)
            print(report(name, outcome, len(corpus.texts)), flush=True)
            with stack.client() as client:
                client.delete_collection(name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
