"""`sluice sync` on a running system: what differs is touched, wherever it was killed before.

`python -m tests.e2e.sync_faults` does it with 2,000 files and three seeds, and kills servers, too.
"""

import random

from tests.e2e.stack import LiveStack
from tests.e2e.sync_faults import Folder, touched

FILES = 40


def test_a_folder_is_kept_wherever_the_command_was_killed(stack: LiveStack) -> None:
    folder = Folder(stack=stack, name="synchronized", rng=random.Random(7))
    folder.fill(FILES)
    assert folder.killed(lambda: folder.count("uploads") >= 3, "three files have arrived")
    report = folder.sync()
    assert report.added
    assert folder.faults() == []
    before = folder.versions()

    changes = folder.change(changed=3, removed=2, added=2)
    would = folder.sync(is_dry_run=True)
    assert (would.added, would.replaced, would.erased, would.unchanged) == (
        changes.added, changes.replaced, changes.erased, FILES - 5,
    )  # fmt: skip
    assert folder.versions() == before
    jobs = folder.count("jobs")
    folder.killed(lambda: folder.count("jobs") > jobs, "the job is there")
    folder.sync()
    assert folder.faults() == []
    assert touched(before, folder.versions()) == changes.names
    again = folder.sync()
    assert (again.unchanged, again.ingest, again.erased) == (FILES, None, ())
    stack.until_tidy(folder.name)
    stack.check_agreement(folder.name)
