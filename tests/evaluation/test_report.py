import base64
import io
import math
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nnunet_dg.evaluation.overlay import CaseView
from nnunet_dg.evaluation.report import overview, readable_means, write_report
from nnunet_dg.evaluation.scores import IN_DOMAIN, UNSEEN, per_case


def rows(trainer, setting, domain, values, run=1):
    return [
        {
            "trainer": trainer, "run": run, "fold": "0", "case": f"{domain}_{i}", "domain": domain, "setting": setting,
            "label": "organ", "dice": value, "hd95_mm": 10 * (1 - value), "reference_file": f"{trainer}_{domain}_{i}",
        }
        for i, value in enumerate(values)
    ]  # fmt: skip


@pytest.fixture
def scores() -> pd.DataFrame:
    found = []
    for trainer, inside, x, y in (("nnUNetTrainer", 0.9, 0.2, 0.4), ("Ours <b>", 0.8, 0.6, 0.7)):
        found += rows(trainer, IN_DOMAIN, "w", [inside, inside - 0.2])
        found += rows(trainer, UNSEEN, "x", [x] * 6) + rows(trainer, UNSEEN, "y", [y])
    return pd.DataFrame(found)


def test_the_table_says_what_was_lost_beside_what_was_gained(scores):
    table = overview(per_case(scores, "dice"), "dice").set_index("trainer")
    assert list(table.columns) == ["in-domain", "unseen", "x, unseen", "y, unseen", "average rank"]
    assert table.loc["nnUNetTrainer"].tolist() == [
        "80.0 ± 10.0 (2)",
        "22.9 ± 2.9 (7)",
        "20.0 ± 0.0 (6)",
        "40.0 ± - (1)",
        "2.0",
    ]
    assert table.loc["Ours <b>"]["average rank"] == "1.0"
    distances = overview(per_case(scores, "hd95_mm"), "hd95_mm").set_index("trainer")
    assert distances.loc["nnUNetTrainer"]["y, unseen"] == "6.00 ± - (1)"
    assert distances.loc["Ours <b>"]["average rank"] == "1.0"


def test_the_report_is_complete_and_opens_anywhere(scores, tmp_path):
    write_report(scores, tmp_path)
    markdown, page, latex = ((tmp_path / f"report.{form}").read_text() for form in ("md", "html", "tex"))
    for text in (markdown, page, latex):
        assert "80.0" in text
        assert "22.9" in text
    assert "| nnUNetTrainer" in markdown
    assert r"80.0 $\pm$ 10.0 (2)" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 4
    assert "Cases above the diagonal are better than with nnUNetTrainer" in page
    assert "HD95" in page  # which these scores have as well
    assert "ASSD" not in page  # which they do not
    assert "Ours &lt;b&gt;" in page
    assert "<b>" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # self-contained
    pictures = [Image.open(io.BytesIO(base64.b64decode(p))) for p in re.findall(r'base64,([^"]+)"', page)]
    assert len(pictures) == 2  # all cases; ours against the baseline
    domains = pd.read_csv(tmp_path / "domains.csv")
    row = domains[(domains["trainer"] == "nnUNetTrainer") & (domains["domain"] == "x") & (domains["metric"] == "dice")]
    assert row[["mean", "n"]].to_numpy().tolist() == [[pytest.approx(0.2), 6]]
    assert len(pd.read_csv(tmp_path / "scores.csv")) == len(scores)
    assert pd.read_csv(tmp_path / "comparisons.csv")["p"].iloc[-1] == pytest.approx(2 / 2**7)


def test_the_worst_unseen_cases_are_shown(scores, tmp_path):
    asked = []

    def view(row):
        asked.append(row["reference_file"])
        masks = np.zeros((3, 5, 6), int)
        return None if row["trainer"] == "nnUNetTrainer" else CaseView(np.ones((1, 3, 5, 6)), masks, masks, (1, 1, 1))

    scores.loc[scores["reference_file"] == "Ours <b>_x_4", "dice"] = 0.01
    write_report(scores, tmp_path, view=view)
    assert asked[0] == "Ours <b>_x_4"
    assert len(asked) == 8
    assert all("_w_" not in name for name in asked)  # in-domain cases are not unseen ones
    assert sorted(p.name for p in tmp_path.glob("worst*.png")) == ["worst_Ours_b.png"]


def test_repeated_trainings_are_shown_apart_and_count_once(scores, tmp_path):
    again = pd.DataFrame(rows("Ours <b>", UNSEEN, "x", [0.4] * 6, run=2))
    table = write_report(pd.concat([scores, again]), tmp_path).set_index("trainer")
    assert table.loc["Ours <b>"]["x, unseen"] == "50.0 ± 0.0 (6)"
    markdown = (tmp_path / "report.md").read_text()
    assert re.search(r"Ours <b>, run 1 .*60\.0 ± 0\.0 \(6\)", markdown)
    assert re.search(r"Ours <b>, run 2 .*40\.0 ± 0\.0 \(6\)", markdown)


def test_what_is_missing_is_said(scores, tmp_path):
    unseen = scores[scores["setting"] == UNSEEN]
    write_report(unseen, tmp_path)
    assert "No in-domain case was given" in (tmp_path / "report.md").read_text()
    fewer = unseen[~((unseen["trainer"] != "nnUNetTrainer") & (unseen["case"] == "x_0"))]
    write_report(fewer, tmp_path, view=lambda row: None)
    text = (tmp_path / "report.md").read_text()
    assert "the same cases and folds (nnUNetTrainer 7, Ours <b> 6): ranks are of the 6" in text
    assert "No picture of 4 of Ours <b>" in text
    write_report(scores, tmp_path)
    assert "No in-domain case" not in (tmp_path / "report.md").read_text()


def test_the_usual_baseline_is_nnunettrainer_or_asked_for(scores, tmp_path):
    renamed = scores.replace("nnUNetTrainer", "nnUNetTrainer nnUNetResEncUNetMPlans")
    write_report(renamed, tmp_path)
    assert "Against nnUNetTrainer nnUNetResEncUNetMPlans" in (tmp_path / "report.md").read_text()
    with pytest.raises(ValueError, match="--baseline, one of 'X', 'Ours <b>'"):
        write_report(scores.replace("nnUNetTrainer", "X"), tmp_path)


def test_one_trainer_alone_has_no_rank_and_no_test(scores, tmp_path):
    table = write_report(scores[scores["trainer"] == "nnUNetTrainer"], tmp_path)
    assert "average rank" not in table
    assert pd.read_csv(tmp_path / "comparisons.csv").empty


def test_a_metric_that_nobody_measured_is_named_with_the_next_step(scores, tmp_path):
    with pytest.raises(ValueError, match=r"nnUNetTrainer has no ASSD.* nnunet-dg evaluate measures it"):
        write_report(scores.assign(assd_mm=math.nan), tmp_path, metric="assd_mm")
    partly = scores.assign(assd_mm=[1.0 if t != "nnUNetTrainer" else math.nan for t in scores["trainer"]])
    with pytest.raises(ValueError, match="nnUNetTrainer has no ASSD"):
        write_report(partly, tmp_path, metric="assd_mm")
    write_report(partly, tmp_path)
    assert "as above, but not all cases were evaluated with it" in (tmp_path / "report.md").read_text()


def test_means_of_labels():
    table = pd.DataFrame(
        {
            "label": ["a", "a", "b"],
            "dice": [0.2, 0.4, math.nan],
            "hd95_mm": [1, 2, math.nan],
            "assd_mm": [1, 1, 1],
            "nsd": [1, 0, 1],
        }
    )
    means = readable_means(table)
    assert means["label"].tolist() == ["a", "b", "mean"]
    assert means["Dice (%)"].tolist() == ["30.0", "-", "30.0"]
    assert means["HD95 (mm)"].tolist() == ["1.50", "-", "1.50"]
