"""Measures of searches: by hand, and as ir-measures reads files of TREC; intervals of means."""

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.kinds.eval import JudgedQuery, measure_names
from shared.kinds.search import Hit
from workers.retrieval.measures import JudgedHits, Means, estimate, judge, values_of


def hit(source: str, text: str = "", *, n: int = 0) -> Hit:
    return Hit(
        chunk_id=f"{source}-{n}", document_id=f"id of {source}", source=source, text=text,
        start=0, score=1.0,
    )  # fmt: skip


def hits(sources: str) -> list[Hit]:
    return [hit(source, n=n) for n, source in enumerate(sources)]


def judged(sources: str, *relevant: object, **fields: object) -> JudgedHits:
    query = JudgedQuery.model_validate({"query": "q", "relevant": list(relevant), **fields})
    return judge(query, hits(sources))


def figures(one: JudgedHits, k: int = 10) -> dict[str, float]:
    return dict(zip(measure_names(k), values_of([one], k)[0], strict=True))


def test_the_first_hit_of_a_document_counts_and_its_others_keep_their_places() -> None:
    one = judged("xaabab", "a", "b")

    assert one.places == [2, 4]
    assert figures(one) == pytest.approx(
        {
            "recall@1": 0, "recall@6": 1, "mrr@10": 1 / 2, "answer@6": np.nan,
            "ndcg@10": (1 / np.log2(3) + 1 / np.log2(5)) / (1 + 1 / np.log2(3)),
        },
        nan_ok=True,
    )  # fmt: skip


def test_what_is_graded_better_counts_for_more_and_0_for_nothing() -> None:
    relevant = [{"id": "a", "grade": 3}, "b", {"id": "c", "grade": 0}]
    assert figures(judged("ab", *relevant))["ndcg@10"] == 1
    assert figures(judged("ba", *relevant))["ndcg@10"] < 1
    assert judged("cb", *relevant).places == [2]
    assert figures(judged("c", *relevant))["recall@6"] == 0


def test_no_hit_and_none_that_is_relevant_are_worth_nothing() -> None:
    for sources in ("", "xyz"):
        values = figures(judged(sources, "a", answers=["word"]))
        assert set(values.values()) == {0}


def test_recall_at_another_k_looks_further() -> None:
    one = judged("x" * 11 + "a", "a")
    assert figures(one, 20)["recall@20"] == 1
    assert figures(one, 20)["recall@6"] == 0
    assert "recall@20" not in measure_names(10)


@pytest.mark.parametrize(
    ("quotation", "text", "is_there"),
    [
        ("Ball of HOT gas", "it is a ball of\n  hot gas, held", True),
        ("308", "gave up 308 points", True),
        ("308", "gave up 13085 points", False),
        ("cat", "a concatenation", False),
        ("서울", "수도는 서울이다", True),
        ("10월", "2019년 10월에", True),
        ("출장비", "출장비", True),  # composed, and in parts
        ("Ａ１", "room A1", True),  # full width
        ("...", "well...", True),
        ("北京", "首都是北京市", True),
    ],
)
def test_a_quotation_is_there_whatever_its_case_width_and_spaces(
    quotation: str, text: str, is_there: bool
) -> None:
    query = JudgedQuery.model_validate(
        {"query": "q", "relevant": [{"text": quotation}], "answers": [quotation]}
    )
    one = judge(query, [hit("a", text)])
    assert one.places == ([1] if is_there else [])
    assert one.has_answer is is_there


def test_an_answer_below_the_first_hits_does_not_count() -> None:
    query = JudgedQuery.model_validate({"query": "q", "relevant": ["a"], "answers": ["word"]})
    texts = [""] * 6 + ["word"]
    assert judge(query, [hit("a", text) for text in texts]).has_answer is False
    assert judge(query, [hit("a", text) for text in texts[1:]]).has_answer is True


def test_two_quotations_in_one_chunk_are_one_relevant_thing() -> None:
    relevant = [{"text": "nine"}, {"text": "morning", "grade": 2}, {"text": "elsewhere"}]
    query = JudgedQuery.model_validate({"query": "q", "relevant": relevant})
    one = judge(query, [hit("a", "at nine in the morning")])
    assert one.places == [1]
    assert sorted(one.grades.values()) == [1, 2]
    assert figures(one)["recall@6"] == 1 / 2


@given(
    st.lists(
        st.tuples(
            st.text("abcdef", max_size=14),
            st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 4), min_size=1),
        ).filter(lambda pair: any(pair[1].values())),
        min_size=1,
        max_size=5,
    )
)
def test_values_are_those_of_a_trec_run_of_first_hits(
    queries: list[tuple[str, dict[str, int]]],
) -> None:
    """Written as a run whose documents have ids of their own where they come again."""
    run: dict[str, dict[str, float]] = {}
    qrels = {}
    judgements = []
    for number, (sources, grades) in enumerate(queries):
        ids = [s if s not in sources[:n] else f"{s}{n}" for n, s in enumerate(sources)]
        run[str(number)] = {id_: -float(n) for n, id_ in enumerate(ids)}
        qrels[str(number)] = grades
        relevant = [{"id": id_, "grade": grade} for id_, grade in grades.items()]
        judgements.append(judged(sources, *relevant))
    parsed = ["R@1", "R@6", "R@12", "RR@10", "nDCG@10"]
    measures = [ir_measures.parse_measure(name) for name in parsed]
    means = ir_measures.calc_aggregate(measures, qrels, run)

    values = values_of(judgements, 12)

    assert np.isnan(values[:, -1]).all()
    assert values[:, :-1].mean(axis=0) == pytest.approx([means[measure] for measure in measures])


def one_measure(*rows: list[float], resamples: int = 1000) -> tuple[Means, Means]:
    values = np.array(rows)[:, :, None]
    return estimate(values, resamples=resamples, between=lambda: None)


def test_intervals_hold_the_mean_in_95_of_100_samples() -> None:
    generator = np.random.default_rng(7)
    held = 0
    for _ in range(200):
        sample = (generator.random(80) < 0.7).astype(float).tolist()
        means, _ = one_measure(sample, resamples=250)
        held += means.low[0, 0] <= 0.7 <= means.high[0, 0]
    assert 180 <= held <= 199


def test_a_paired_difference_is_surer_than_two_intervals() -> None:
    generator = np.random.default_rng(7)
    first = generator.random(200)
    second = first + 0.05 + 0.01 * generator.random(200)
    means, differences = one_measure(first.tolist(), second.tolist())

    assert means.high[0, 0] > means.low[1, 0]  # the intervals overlap
    assert differences.value[1, 0] == pytest.approx((second - first).mean())
    assert 0.05 < differences.low[1, 0] < differences.value[1, 0] < differences.high[1, 0] < 0.06
    assert differences.low[0, 0] == differences.high[0, 0] == 0


def test_what_some_queries_lack_is_a_mean_of_the_others() -> None:
    nan = float("nan")
    means, differences = one_measure([1, nan, 0, nan], [1, nan, 1, nan])
    assert means.value[:, 0].tolist() == [0.5, 1]
    assert means.low[0, 0] == 0
    assert means.high[0, 0] == 1
    assert differences.value[1, 0] == 0.5
    nothing, _ = one_measure([nan, nan])
    assert np.isnan(nothing.value).all()


def test_the_same_values_have_the_same_intervals() -> None:
    rows = [[0.0, 1.0, 0.5, 0.25, 1.0]]
    assert np.array_equal(one_measure(*rows)[0].low, one_measure(*rows)[0].low)


def test_intervals_can_be_given_up_on() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        estimate(np.ones((1, 3, 1)), resamples=10, between=stop)
