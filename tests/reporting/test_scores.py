import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, rankdata

from nnunet_dg.reporting.scores import (
    ALL,
    IN_DOMAIN,
    UNSEEN,
    against_baseline,
    average_rank,
    by_domain,
    by_label,
    common,
    per_case,
)


def rows(trainer, setting, domain, values, run=1, label="a"):
    return [
        {
            "trainer": trainer, "run": run, "fold": "0", "case": f"{domain}_{i}", "domain": domain, "setting": setting,
            "label": label, "dice": value, "hd95_mm": 10 * (1 - value),
        }
        for i, value in enumerate(values)
    ]  # fmt: skip


def get(summary, **wanted):
    found = summary[np.logical_and.reduce([summary[k] == v for k, v in wanted.items()])]
    assert len(found) == 1
    return found.iloc[0]


def test_the_score_of_a_case_is_the_mean_of_its_labels_without_nan():
    scores = pd.DataFrame(
        rows("A", UNSEEN, "x", [0.2, math.nan, math.nan]) + rows("A", UNSEEN, "x", [0.6, 0.5, math.nan], label="b")
    )
    cases = per_case(scores, "dice")
    assert cases["case"].tolist() == ["x_0", "x_1"]
    assert cases["dice"].tolist() == pytest.approx([0.4, 0.5])


def test_means_and_standard_errors_by_hand():
    scores = rows("A", IN_DOMAIN, "x", [0.1, 0.3]) + rows("A", UNSEEN, "y", [0.8]) + rows("A", UNSEEN, "z", [0.2, 0.5])
    summary = by_domain(per_case(pd.DataFrame(scores), "dice"), "dice")
    inside = get(summary, setting=IN_DOMAIN, domain=ALL)
    assert (inside["mean"], inside["n"]) == (pytest.approx(0.2), 2)
    assert inside["standard_error"] == pytest.approx(0.1)  # sqrt(((.1)^2 + (.1)^2) / 1) / sqrt(2)
    assert get(summary, setting=UNSEEN, domain=ALL)["mean"] == pytest.approx(0.5)
    single = get(summary, setting=UNSEEN, domain="y")
    assert single["n"] == 1
    assert math.isnan(single["standard_error"])


def test_a_case_of_several_runs_counts_once():
    scores = pd.DataFrame(rows("A", UNSEEN, "x", [0.2, 0.4]) + rows("A", UNSEEN, "x", [0.4, 0.6], run=2))
    cases = per_case(scores, "dice")
    pooled = get(by_domain(cases, "dice"), domain="x")
    assert (pooled["mean"], pooled["n"]) == (pytest.approx(0.4), 2)
    assert pooled["standard_error"] == pytest.approx(0.1)  # of 0.3 and 0.5
    apart = by_domain(cases, "dice", runs_apart=True)
    assert [get(apart, domain="x", run=run)["mean"] for run in (1, 2)] == pytest.approx([0.3, 0.5])


def test_ranks_use_the_unseen_domains_that_all_trainers_have():
    scores = []
    for trainer, x, y in (("A", 0.9, 0.1), ("B", 0.5, 0.5), ("C", 0.5, 0.9)):
        scores += rows(trainer, UNSEEN, "x", [x]) + rows(trainer, UNSEEN, "y", [y]) + rows(trainer, IN_DOMAIN, "w", [x])
    scores += rows("A", UNSEEN, "only_a", [0.0])
    scores = pd.DataFrame(scores)
    for metric in ("dice", "hd95_mm"):  # less HD95 is better, and here it falls as Dice rises
        summary = by_domain(per_case(scores, metric), metric)
        assert average_rank(summary, metric).to_dict() == {"A": 2, "B": 2.25, "C": 1.75}
    seen = summary[summary["setting"] == IN_DOMAIN]
    assert average_rank(seen, "hd95_mm").to_dict() == {"A": 1, "B": 2.5, "C": 2.5}


def test_wilcoxon_by_hand():
    """Four differences, all positive: on each side 1 of 2^4 sign patterns is as extreme."""
    scores = rows("A", UNSEEN, "x", [0.1, 0.2, 0.3, 0.4]) + rows("B", UNSEEN, "x", [0.2, 0.4, 0.6, 0.8])
    result = get(against_baseline(per_case(pd.DataFrame(scores), "dice"), "dice", "A"), trainer="B")
    assert (result["n"], result["p"]) == (4, pytest.approx(2 / 16))
    assert result["mean_difference"] == pytest.approx(0.25)


def test_wilcoxon_agrees_with_the_normal_approximation_of_signed_ranks():
    rng = np.random.default_rng(0)
    first, second = rng.random(200), rng.random(200)
    scores = pd.DataFrame(rows("A", UNSEEN, "x", first) + rows("B", UNSEEN, "x", second))
    p = against_baseline(per_case(scores, "dice"), "dice", "A")["p"].item()
    difference = second - first
    n, ranks = len(difference), rankdata(abs(difference))
    z = (ranks[difference > 0].sum() - n * (n + 1) / 4) / math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    assert p == pytest.approx(2 * norm.sf(abs(z)), rel=0.02)


def test_holm_by_hand():
    """Three comparisons: the p-values in rising order times 3, 2 and 1, made non-decreasing."""
    gains = {"B": [1] * 8, "C": [1] * 7 + [-1], "D": [1, -1] * 4}
    scores = rows("A", UNSEEN, "x", [0.5] * 8)
    for trainer, signs in gains.items():
        scores += rows(trainer, UNSEEN, "x", [0.5 + sign * 0.01 * (i + 1) for i, sign in enumerate(signs)])
    result = against_baseline(per_case(pd.DataFrame(scores), "dice"), "dice", "A").set_index("trainer")
    p = result["p"]
    assert p["B"] < p["C"] < p["D"]
    expected = [3 * p["B"], max(3 * p["B"], 2 * p["C"]), max(2 * p["C"], p["D"])]
    assert result["p_holm"].tolist() == pytest.approx(expected)


def test_pairs_are_cases_that_both_trainers_have_in_a_setting():
    scores = (
        rows("A", UNSEEN, "x", [0.1, 0.2]) + rows("B", UNSEEN, "x", [0.3])
        + rows("A", IN_DOMAIN, "x", [0.9]) + rows("B", IN_DOMAIN, "x", [0.9])
    )  # fmt: skip
    result = against_baseline(per_case(pd.DataFrame(scores), "dice"), "dice", "A").set_index("setting")
    assert result["n"].to_dict() == {IN_DOMAIN: 1, UNSEEN: 1}
    assert result["mean_difference"].to_dict() == pytest.approx({IN_DOMAIN: 0, UNSEEN: 0.2})
    assert result["p"][IN_DOMAIN] == 1


def test_pairs_are_from_the_same_fold():
    """Two folds validate the same cases. The trainers are equal on the fold they share, so the difference is zero."""
    hard, easy = [0.2, 0.25, 0.3, 0.22, 0.28, 0.21, 0.27, 0.26], [0.8, 0.85, 0.9, 0.82, 0.88, 0.81, 0.87, 0.86]
    scores = [*rows("A", UNSEEN, "x", hard), *({**r, "fold": "1"} for r in rows("A", UNSEEN, "x", easy))]
    scores += [{**r, "fold": "1"} for r in rows("B", UNSEEN, "x", easy)]
    cases = per_case(pd.DataFrame(scores), "dice")
    result = get(against_baseline(cases, "dice", "A"), trainer="B")
    assert (result["n"], result["mean_difference"], result["p"]) == (8, 0, 1)
    assert set(common(cases, "dice")["fold"]) == {"1"}
    assert len(common(cases, "dice")) == 16
    ranks = average_rank(by_domain(common(cases, "dice"), "dice"), "dice")
    assert ranks.to_dict() == {"A": 1.5, "B": 1.5}


def test_an_unknown_baseline_is_refused_with_the_known_trainers():
    cases = per_case(pd.DataFrame(rows("A", UNSEEN, "x", [0.5])), "dice")
    with pytest.raises(ValueError, match="`baseline` must be one of 'A'; got 'Z'"):
        against_baseline(cases, "dice", "Z")
    assert against_baseline(cases, "dice", "A").empty


@pytest.mark.parametrize("name", ["all", "ALL", "mean", "domain", "nan", "None"])
def test_no_domain_name_stands_for_all_domains(name):
    scores = pd.DataFrame(rows("A", UNSEEN, name, [0.2]) + rows("A", UNSEEN, "y", [0.8]))
    summary = by_domain(per_case(scores, "dice"), "dice")
    assert get(summary, domain=name)["n"] == 1
    assert get(summary, domain=ALL)["n"] == 2
    assert get(summary, domain=ALL)["mean"] == pytest.approx(0.5)


def test_cases_without_domains_count_once_and_are_ranked_together():
    scores = pd.DataFrame(rows("A", IN_DOMAIN, "", [0.2, 0.4]) + rows("B", IN_DOMAIN, "", [0.3, 0.9]))
    summary = by_domain(per_case(scores, "dice"), "dice")
    assert get(summary, trainer="A")["n"] == 2
    assert average_rank(summary, "dice").to_dict() == {"A": 2, "B": 1}


def test_means_of_labels_by_hand():
    """Label a: case 0 averages 0.3 over its runs, case 1 is 0.5, so 0.4 +- 0.1. Label b has one case."""
    scores = pd.DataFrame(
        rows("A", UNSEEN, "x", [0.2, 0.5]) + rows("A", UNSEEN, "x", [0.4, 0.5], run=2)
        + rows("A", UNSEEN, "x", [math.nan, 0.7], label="b") + rows("A", IN_DOMAIN, "w", [1.0])
    )  # fmt: skip
    summary = by_label(scores, "dice")
    unseen = get(summary, setting=UNSEEN, label="a")
    assert (unseen["mean"], unseen["standard_error"], unseen["n"]) == (pytest.approx(0.4), pytest.approx(0.1), 2)
    assert get(summary, setting=UNSEEN, label="b")[["mean", "n"]].tolist() == [pytest.approx(0.7), 1]
    assert get(summary, setting=IN_DOMAIN, label="a")["mean"] == 1
