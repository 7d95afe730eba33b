"""A collection changes its embedding model while it is searched and filled and parts are killed.

`python -m tests.e2e.switch_faults` does it with 1,000 documents, 16 clients and three seeds.
"""

import random

from sluice import Client
from tests.e2e.stack import LiveStack
from tests.e2e.switch_faults import Corpus, Run, prepare

PARTS = ("api", "cpu", "chroma", "redis")


def test_nobody_who_searches_notices_a_change_of_the_model(
    stack: LiveStack, client: Client
) -> None:
    prepare(stack)
    corpus = Corpus.of(60, questions=15)
    run = Run(stack, "switched", corpus, clients=4, calm_s=1)
    outcome = run.go(random.Random(7), parts=PARTS)
    assert outcome.wrong == []
    assert outcome.killed  # all of them, unless the machine is fast
    assert outcome.searchers.answers
    assert outcome.told_apart
    comparison = (outcome.rebuild.result or {})["comparison"]
    assert comparison["overlap"] > 0.5
    assert min(comparison["recall"], comparison["recall_before"]) > 0.8
    listed = client.collection("switched").indexes
    assert [(one.state, one.dimension) for one in listed] == [("active", 384), ("retired", 128)]
