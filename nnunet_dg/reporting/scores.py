"""From scores of cases to what a paper prints: per domain, in-domain beside unseen, ranks, tests against a baseline.

A table of scores has one row per training, case and label, and the columns ``trainer``, ``run`` (1, 2, ... of repeated
trainings), ``fold``, ``case``, ``domain``, ``setting`` (`IN_DOMAIN` or `UNSEEN`, of that training), ``label``, and one
column per metric. NaN says that there was nothing to find. An empty ``domain`` says that domains are not known.
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
ALL = ""  # domains together: never a name, since names are not empty


def per_case(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The mean of a case's labels; cases with nothing to find are left out.

    Returns:
        ``trainer``, ``run``, ``fold``, ``case``, ``domain``, ``setting``, and the metric.
    """
    of = ["trainer", "run", "fold", "case", "domain", "setting"]
    return scores.groupby(of, sort=False)[metric].mean().dropna().reset_index()


def by_domain(cases: pd.DataFrame, metric: str, runs_apart: bool = False) -> pd.DataFrame:
    """Mean and standard error of each trainer in each setting, over all cases (domain `ALL`) and per domain.

    Repeated trainings are averaged case by case first, so that a case counts once, or kept apart.

    Args:
        cases: Table returned by `per_case`.
        metric: A column of it.
        runs_apart: Whether each run has its own row.

    Returns:
        ``trainer``, (``run``), ``setting``, ``domain``, ``mean``, ``standard_error`` (NaN of a single case) and ``n``.
    """
    trained = ["trainer", "run"] if runs_apart else ["trainer"]
    each = cases.groupby([*trained, "setting", "domain", "case"], sort=False)[metric].mean().reset_index()
    both = pd.concat([each.assign(domain=ALL), each[each["domain"] != ALL]])
    summary = both.groupby([*trained, "setting", "domain"], sort=False)[metric].agg(["mean", "sem", "count"])
    return summary.rename(columns={"sem": "standard_error", "count": "n"}).reset_index()


def by_label(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Mean and standard error of each label, per trainer and setting, over the cases in which there is one to find.

    Folds that have the same case, and repeated trainings, are averaged case by case first.

    Args:
        scores: The table of scores.
        metric: A column of it.

    Returns:
        ``trainer``, ``setting``, ``label``, ``mean``, ``standard_error`` (NaN of a single case) and ``n``.
    """
    of_label = ["trainer", "setting", "label"]
    each = scores.groupby([*of_label, "domain", "case"], sort=False)[metric].mean().dropna().reset_index()
    summary = each.groupby(of_label, sort=False)[metric].agg(["mean", "sem", "count"])
    return summary.rename(columns={"sem": "standard_error", "count": "n"}).reset_index()


def paired(cases: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One column per trainer, one row per ``(setting, domain, case, fold)``; repeated trainings are averaged."""
    return cases.pivot_table(index=["setting", "domain", "case", "fold"], columns="trainer", values=metric, sort=False)


def common(cases: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of cases and folds that every trainer has."""
    index = ["setting", "domain", "case", "fold"]
    complete = paired(cases, metric).dropna().index
    return cases[pd.MultiIndex.from_frame(cases[index]).isin(complete)]


def average_rank(summary: pd.DataFrame, metric: str) -> pd.Series:
    """Each trainer's rank among the others, averaged over the unseen domains; without any, over the others.

    1 is the best; equal trainers share the mean of their ranks. Domains that some trainer was not evaluated on do not
    count. Where domains are not known, ranks are of all cases together.

    Args:
        summary: Table returned by `by_domain`.
        metric: The metric that it is of.

    Returns:
        Indexed by trainer; empty if no domain has been evaluated with all of them.
    """
    setting = UNSEEN if (summary["setting"] == UNSEEN).any() else IN_DOMAIN
    of_setting = summary[summary["setting"] == setting]
    named = of_setting["domain"] != ALL
    means = of_setting[named] if named.any() else of_setting
    table = means.pivot_table(index="trainer", columns="domain", values="mean", sort=False).dropna(axis=1)
    return table.rank(ascending=not HIGHER_IS_BETTER[metric]).mean(axis=1)


def against_baseline(cases: pd.DataFrame, metric: str, baseline: str) -> pd.DataFrame:
    """Wilcoxon's signed-rank test of each trainer against the baseline, paired by case, in each setting.

    Two-sided; p-values are corrected by Holm's method over all comparisons in the table. Pairs are of one fold;
    repeated trainings, and then folds that have the same case, are averaged.

    Args:
        cases: Table returned by `per_case`.
        metric: A column of it.
        baseline: A trainer.

    Returns:
        ``trainer``, ``setting``, ``n`` pairs, ``mean_difference`` (trainer - baseline), ``p`` and ``p_holm``. p is 1
        where no case differs.

    Raises:
        SettingsError: There is no such trainer.
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
