"""A folder of files, synchronized in peace and while the command, servers and workers are killed.

    python -m tests.e2e.sync_faults --files 2000 --seeds 3

starts a stack of its own, synchronizes the folder once, changes 10 files, removes 5 and adds 5, and
looks which documents that touches; then does the same once for each seed while the command is
killed at seeded moments and run again, and the API, the worker, its pool and Redis are killed
beside it. It prints a line for each run, and ends with 1 where the end is another one than the
folder, or where a document was touched whose file is the same.
"""

import argparse
import hashlib
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sluice import SyncReport
from tests.e2e.processes import until
from tests.e2e.stack import QUICK, LiveStack, temporary_stack

CHANGED, REMOVED, ADDED = 10, 5, 5
KILLS_OF_THE_COMMAND = 4
PARTS = ("api", "cpu", "pool", "redis")


@dataclass(kw_only=True)
class Folder:
    """Files that are synchronized into a collection of their own name."""

    stack: LiveStack
    name: str
    rng: random.Random
    texts: dict[str, str] = field(default_factory=dict)
    """What lies there, by the names of documents."""

    @property
    def top(self) -> Path:
        """Where names begin; the command runs there."""
        return self.stack.home.parent

    def write(self, name: str, text: str) -> None:
        path = self.top / self.name / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        self.texts[f"{self.name}/{name}"] = text

    def fill(self, count: int) -> None:
        for n in range(count):
            self.write(f"{n % 20}/text-{n}.txt", f"Text {n} is about matter {n}.")

    def change(self, *, changed: int, removed: int, added: int) -> "Changes":
        names = self.rng.sample(sorted(self.texts), changed + removed)
        for name in names[:changed]:
            self.write(name.partition("/")[2], f"{self.texts[name]} And {self.rng.random()}.")
        for name in names[changed:]:
            (self.top / name).unlink()
            del self.texts[name]
        new = [f"new/{self.rng.getrandbits(64)}.txt" for _ in range(added)]
        for name in new:
            self.write(name, f"A new text: {name}.")
        return Changes(
            replaced=tuple(sorted(names[:changed])),
            erased=tuple(sorted(names[changed:])),
            added=tuple(sorted(f"{self.name}/{name}" for name in new)),
        )

    def sync(self, *, is_dry_run: bool = False) -> SyncReport:
        with self.stack.client() as client:
            return client.sync(self.name, [self.top / self.name], root=self.top, dry_run=is_dry_run)

    def killed(self, moment: Callable[[], object], what: str) -> bool:
        """Run the command, and kill it at this moment; whether it had not ended before."""
        with self.stack.start("sync", self.name, "-c", self.name, "--json", cwd=self.top) as run:
            until(lambda: moment() or not run.is_running(), what, 3600)
            return run.is_running()

    def versions(self) -> dict[str, str]:
        """The version that readers see of each document."""
        rows = self.stack.sql(
            "SELECT d.source, d.live_version_id::text FROM documents d "
            "JOIN collections c ON c.id = d.collection_id "
            "WHERE c.name = %s AND d.live_version_id IS NOT NULL",
            self.name,
        )
        return dict(rows)

    def faults(self) -> list[str]:
        """How the collection differs from the folder."""
        rows = self.stack.sql(
            "SELECT d.source, v.sha256 FROM documents d "
            "JOIN versions v ON v.id = d.live_version_id "
            "JOIN collections c ON c.id = d.collection_id WHERE c.name = %s",
            self.name,
        )
        expected = {
            name: hashlib.sha256(text.encode()).hexdigest() for name, text in self.texts.items()
        }
        actual = dict(rows)
        return [
            name
            for name in sorted(expected.keys() | actual.keys())
            if expected.get(name) != actual.get(name)
        ]

    # Moments

    def count(self, what: str) -> int:
        """How much of it there is by now."""
        queries = {
            "uploads": "SELECT count(*) FROM files WHERE name LIKE %s || '/%%'",
            "jobs": "SELECT count(*) FROM jobs WHERE collection = %s AND kind = 'ingest'",
            "documents": "SELECT count(*) FROM ingest_items i JOIN jobs j ON j.id = i.job_id "
            "WHERE j.collection = %s AND i.outcome IS NOT NULL",
            "ended jobs": "SELECT count(*) FROM jobs WHERE collection = %s AND kind = 'ingest' "
            "AND finished_at IS NOT NULL",
        }
        return int(self.stack.value(queries[what], self.name))


@dataclass(frozen=True, kw_only=True)
class Changes:
    """By the names of documents, in order."""

    added: tuple[str, ...]
    replaced: tuple[str, ...]
    erased: tuple[str, ...]

    @property
    def names(self) -> set[str]:
        return {*self.added, *self.replaced, *self.erased}


def touched(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """Documents that are there no longer, or not as they were."""
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def disturbed(folder: Folder, *, kills: int, parts: Sequence[str] = ()) -> list[str]:
    """Kill the command again and again while it runs, and the parts of the stack beside it; what
    was killed, and when. It is not run to its end."""
    rng, done = folder.rng, []
    strikes = list(parts)
    rng.shuffle(strikes)

    def reached(what: str, limit: int) -> bool:
        return folder.count(what) >= limit

    for n in range(kills):
        what = rng.choice(("uploads", "jobs", "documents", "ended jobs"))
        limit = folder.count(what) + (rng.randint(1, 4) if what in ("uploads", "documents") else 1)
        if not folder.killed(partial(reached, what, limit), f"{limit} {what}, or the end"):
            break
        done.append(f"the command at {limit} {what}")
        for part in strikes[n::kills]:
            strike(folder.stack, part)
            done.append(part)
    return done


def strike(stack: LiveStack, part: str) -> None:
    if part == "api":
        stack.kill_and_await("api")
    elif part == "cpu":
        stack.kill_and_await("cpu-1", group=True)
    elif part == "pool":
        stack.kill_pool()
    else:
        stack.lose_redis()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    failed = 0
    with temporary_stack("sluice-sync-", QUICK) as stack:
        for seed in (None, *range(arguments.seeds)):
            folder = Folder(
                stack=stack,
                name="peace" if seed is None else f"seed-{seed}",
                rng=random.Random(seed or 0),
            )
            folder.fill(arguments.files)
            began = time.monotonic()
            done = [] if seed is None else disturbed(folder, kills=2, parts=PARTS)
            folder.sync()
            first_s = time.monotonic() - began
            wrong = folder.faults()
            before = folder.versions()
            changes = folder.change(changed=CHANGED, removed=REMOVED, added=ADDED)
            would = folder.sync(is_dry_run=True)
            is_planned = (would.added, would.replaced, would.erased) == (
                changes.added, changes.replaced, changes.erased,
            )  # fmt: skip
            began = time.monotonic()
            if seed is not None:
                done += disturbed(folder, kills=KILLS_OF_THE_COMMAND, parts=PARTS)
            uploads = folder.count("uploads")
            report = folder.sync()
            took_s = time.monotonic() - began
            stack.until_whole()
            stack.until_tidy(folder.name)
            stack.check_agreement(folder.name)
            wrong += folder.faults()
            others = touched(before, folder.versions()) ^ changes.names
            again = folder.sync()
            is_still = again.unchanged == len(folder.texts) and again.ingest is None
            is_still = is_still and not again.erased
            if seed is None:
                is_planned = is_planned and folder.count("uploads") - uploads == CHANGED + ADDED
                is_planned = is_planned and len(report.added) == ADDED
            is_bad = bool(wrong or others) or not (is_planned and is_still)
            failed += is_bad
            print(
                f"{folder.name}: {'WRONG' if is_bad else 'right'}, {len(folder.texts):,} files in "
                f"{first_s:.0f} s, {CHANGED + REMOVED + ADDED} changes in {took_s:.1f} s; differ "
                f"{wrong[:3]}, touched beside {sorted(others)[:3]}, planned {is_planned}, still "
                f"{is_still}; killed: {', '.join(done) or 'nothing'}",
                flush=True,
            )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
