"""Statistics of scores: means per domain, in-domain and unseen, ranks, and tests against a baseline.

A table of scores has one row per training, case and label, and the columns ``trainer``, ``run`` (1, 2, ... for repeated
trainings), ``fold``, ``case``, ``domain``, ``setting`` (`IN_DOMAIN`, `UNSEEN` or `VALIDATION` for that training),
``label``, and one column per metric. NaN means that both masks are empty. An empty ``domain`` means that domains are
unknown. Cases of the setting `VALIDATION` were used to choose settings or trainers; reports leave them out.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon

from nnunet_dg.errors import SettingsError
from nnunet_dg.evaluation.metrics import HIGHER_IS_BETTER
from nnunet_dg.extras import require
from nnunet_dg.names import did_you_mean

IN_DOMAIN, UNSEEN = "in-domain", "unseen"
SETTINGS = (IN_DOMAIN, UNSEEN)
VALIDATION = "validation"
ALL = ""  # stands for all domains together; names of domains are never empty


def per_case(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The mean over the labels of each case. Cases without any value are left out.

    Returns:
        Columns ``trainer``, ``run``, ``fold``, ``case``, ``domain``, ``setting``, and the metric.
    """
    keys = ["trainer", "run", "fold", "case", "domain", "setting"]
    return scores.groupby(keys, sort=False)[metric].mean().dropna().reset_index()


def by_domain(cases: pd.DataFrame, metric: str, runs_apart: bool = False) -> pd.DataFrame:
    """Mean and standard error of each trainer in each setting, over all cases (domain `ALL`) and per domain.

    Repeated trainings are averaged case by case first, so that each case counts once, unless ``runs_apart`` is set.

    Args:
        cases: Table returned by `per_case`.
        metric: Name of the metric's column.
        runs_apart: Whether to keep repeated trainings in separate rows.

    Returns:
        Columns ``trainer``, ``run`` (if ``runs_apart``), ``setting``, ``domain``, ``mean``, ``standard_error`` (NaN for
        a single case) and ``n``.
    """
    trained = ["trainer", "run"] if runs_apart else ["trainer"]
    each = cases.groupby([*trained, "setting", "domain", "case"], sort=False)[metric].mean().reset_index()
    both = pd.concat([each.assign(domain=ALL), each[each["domain"] != ALL]])
    summary = both.groupby([*trained, "setting", "domain"], sort=False)[metric].agg(["mean", "sem", "count"])
    return summary.rename(columns={"sem": "standard_error", "count": "n"}).reset_index()


def by_label(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Mean and standard error of each label, per trainer and setting, over the cases that have a value for it.

    Folds with the same case, and repeated trainings, are averaged case by case first.

    Args:
        scores: Table of scores.
        metric: Name of the metric's column.

    Returns:
        Columns ``trainer``, ``setting``, ``label``, ``mean``, ``standard_error`` (NaN for a single case) and ``n``.
    """
    keys = ["trainer", "setting", "label"]
    each = scores.groupby([*keys, "domain", "case"], sort=False)[metric].mean().dropna().reset_index()
    summary = each.groupby(keys, sort=False)[metric].agg(["mean", "sem", "count"])
    return summary.rename(columns={"sem": "standard_error", "count": "n"}).reset_index()


def paired(cases: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One column per trainer, one row per ``(setting, domain, case, fold)``; repeated trainings are averaged."""
    return cases.pivot_table(index=["setting", "domain", "case", "fold"], columns="trainer", values=metric, sort=False)


def common(cases: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows whose case and fold every trainer has."""
    index = ["setting", "domain", "case", "fold"]
    complete = paired(cases, metric).dropna().index
    return cases[pd.MultiIndex.from_frame(cases[index]).isin(complete)]


def average_rank(summary: pd.DataFrame, metric: str) -> pd.Series:
    """Each trainer's rank, averaged over the unseen domains, or over the in-domain ones if none is unseen.

    Rank 1 is the best; equal trainers share the mean of their ranks. Domains on which some trainer was not evaluated
    are left out. If domains are unknown, all cases together count as one domain.

    Args:
        summary: Table returned by `by_domain`.
        metric: Metric of the table.

    Returns:
        Ranks indexed by trainer; empty if no domain was evaluated with all trainers.
    """
    setting = UNSEEN if (summary["setting"] == UNSEEN).any() else IN_DOMAIN
    chosen = summary[summary["setting"] == setting]
    named = chosen["domain"] != ALL
    means = chosen[named] if named.any() else chosen
    table = means.pivot_table(index="trainer", columns="domain", values="mean", sort=False).dropna(axis=1)
    return table.rank(ascending=not HIGHER_IS_BETTER[metric]).mean(axis=1)


def against_baseline(cases: pd.DataFrame, metric: str, baseline: str) -> pd.DataFrame:
    """Wilcoxon's signed-rank test of each trainer against the baseline, paired by case, in each setting.

    The test is two-sided, and p-values are corrected by Holm's method over all comparisons in the table. Pairs have the
    same case and fold. Repeated trainings are averaged first, then folds with the same case.

    Args:
        cases: Table returned by `per_case`.
        metric: Name of the metric's column.
        baseline: Name of the trainer to compare with.

    Returns:
        Columns ``trainer``, ``setting``, ``n`` (pairs), ``mean_difference`` (trainer - baseline), ``p`` and ``p_holm``.
        If no case differs, ``p`` is 1.

    Raises:
        SettingsError: The table has no such trainer.
        ExtraError: The extra "report" is not installed.
    """
    require("report", "Holm's correction")
    from statsmodels.stats.multitest import multipletests

    trainers = list(dict.fromkeys(cases["trainer"]))
    if baseline not in trainers:
        known = ", ".join(map(repr, trainers))
        raise SettingsError(f"`baseline` must be one of {known}; got {baseline!r}.{did_you_mean(baseline, trainers)}")
    table = paired(cases, metric)
    rows = []
    for trainer in trainers:
        for setting in SETTINGS:
            if trainer == baseline or setting not in table.index.get_level_values("setting"):
                continue
            pairs = table.loc[setting, [trainer, baseline]].dropna()
            difference = (pairs[trainer] - pairs[baseline]).groupby(["domain", "case"]).mean()
            if difference.empty:
                continue
            p = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
            rows.append((trainer, setting, len(difference), float(difference.mean()), p))
    result = pd.DataFrame(rows, columns=["trainer", "setting", "n", "mean_difference", "p"])
    return result.assign(p_holm=multipletests(result["p"], method="holm")[1] if len(result) else np.empty(0))
