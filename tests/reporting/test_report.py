import base64
import html
import io
import math
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nnunet_dg.errors import DataError, SettingsError
from nnunet_dg.reporting.overlay import CaseView
from nnunet_dg.reporting.report import overview, readable_means, write_report
from nnunet_dg.reporting.scores import IN_DOMAIN, UNSEEN, VALIDATION, per_case


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


def test_the_overview_has_in_domain_unseen_domains_and_ranks(scores):
    table = overview(per_case(scores, "dice"), "dice").set_index("trainer")
    assert list(table.columns) == ["in-domain", "unseen", "x, unseen", "y, unseen", "average rank"]
    assert table.loc["nnUNetTrainer"].tolist() == [
        "80.0 ± 10.0 (2)",
        "22.9 ± 2.9 (7)",
        "20.0 ± 0.0 (6)",
        "40.0 (1)",
        "2.0",
    ]
    assert table.loc["Ours <b>"]["average rank"] == "1.0"
    distances = overview(per_case(scores, "hd95_mm"), "hd95_mm").set_index("trainer")
    assert distances.loc["nnUNetTrainer"]["y, unseen"] == "6.00 (1)"
    assert distances.loc["Ours <b>"]["average rank"] == "1.0"


def test_the_report_is_complete_and_self_contained(scores, tmp_path):
    write_report(scores, tmp_path)
    markdown, page, latex = ((tmp_path / f"report.{form}").read_text() for form in ("md", "html", "tex"))
    for text in (markdown, page, latex):
        assert "80.0" in text
        assert "22.9" in text
    assert "| nnUNetTrainer" in markdown
    assert r"80.0 $\pm$ 10.0 (2)" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 5
    assert "Cases above the diagonal are better than with nnUNetTrainer" in page
    assert "HD95" in page  # these scores have this metric
    assert "ASSD" not in page  # and not this one
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
    viewed = []

    def view(row):
        viewed.append(row["reference_file"])
        masks = np.zeros((3, 5, 6), int)
        return None if row["trainer"] == "nnUNetTrainer" else CaseView(np.ones((1, 3, 5, 6)), masks, masks, (1, 1, 1))

    scores.loc[scores["reference_file"] == "Ours <b>_x_4", "dice"] = 0.01
    write_report(scores, tmp_path, view=view)
    assert viewed[0] == "Ours <b>_x_4"
    assert len(viewed) == 8
    assert all("_w_" not in name for name in viewed)  # no in-domain cases
    assert sorted(p.name for p in tmp_path.glob("worst*.png")) == ["worst_Ours_b.png"]


def test_repeated_trainings_are_shown_separately_and_count_once(scores, tmp_path):
    again = pd.DataFrame(rows("Ours <b>", UNSEEN, "x", [0.4] * 6, run=2))
    table = write_report(pd.concat([scores, again]), tmp_path).set_index("trainer")
    assert table.loc["Ours <b>"]["x, unseen"] == "50.0 ± 0.0 (6)"
    markdown = (tmp_path / "report.md").read_text()
    assert re.search(r"Ours \\<b\\>, run 1 .*60\.0 ± 0\.0 \(6\)", markdown)
    assert re.search(r"Ours \\<b\\>, run 2 .*40\.0 ± 0\.0 \(6\)", markdown)


def test_missing_cases_and_files_are_reported(scores, tmp_path):
    unseen = scores[scores["setting"] == UNSEEN]
    write_report(unseen, tmp_path)
    assert "No in-domain cases were given" in (tmp_path / "report.md").read_text()
    fewer = unseen[~((unseen["trainer"] != "nnUNetTrainer") & (unseen["case"] == "x_0"))]
    write_report(fewer, tmp_path, view=lambda row: None)
    text = (tmp_path / "report.md").read_text()
    assert "different cases and folds (nnUNetTrainer 7, Ours \\<b\\> 6). Ranks use the 6" in text
    assert r"Ours \<b\>: no picture of 4 cases whose files were not found." in text
    write_report(scores, tmp_path)
    assert "No in-domain case" not in (tmp_path / "report.md").read_text()


def test_the_default_baseline_is_nnunettrainer_or_must_be_chosen(scores, tmp_path):
    renamed = scores.replace("nnUNetTrainer", "nnUNetTrainer nnUNetResEncUNetMPlans")
    write_report(renamed, tmp_path)
    assert "Against nnUNetTrainer nnUNetResEncUNetMPlans" in (tmp_path / "report.md").read_text()
    with pytest.raises(ValueError, match="`baseline`, one of 'X', 'Ours <b>'"):
        write_report(scores.replace("nnUNetTrainer", "X"), tmp_path)


def test_a_single_trainer_has_no_rank_and_no_test(scores, tmp_path):
    table = write_report(scores[scores["trainer"] == "nnUNetTrainer"], tmp_path)
    assert "average rank" not in table
    assert pd.read_csv(tmp_path / "comparisons.csv").empty


def test_a_metric_without_scores_is_named_with_the_next_step(scores, tmp_path):
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
    means = readable_means(table.replace("b", "mean"))
    assert means["label"].tolist() == ["a", "mean", "mean"]
    assert means["Dice (%)"].tolist() == ["30.0", "-", "30.0"]
    means = readable_means(table)
    assert means["label"].tolist() == ["a", "b", "mean"]
    assert means["Dice (%)"].tolist() == ["30.0", "-", "30.0"]
    assert means["HD95 (mm)"].tolist() == ["1.50", "-", "1.50"]


NAMES = (
    "a|b", "<script>x</script>", "[red]", "[/site]", "$\\frac{$", "a_b_c", "_hidden", "*x*", "50 % & #1 ~^{}",
    "\\input{x}",
    "=1+1", "-2", "@sum", "line\nbreak", "\x1b[31m", "../up", "all", "trainer", "domain", "setting", "case", "fold",
    "Z\u00fcrich", "\u5317\u4eac", "\u4e0a\u6d77", "A B", "A_B", "a b", "x" * 300,
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_are_escaped_in_every_format(name, tmp_path):
    ours, plain = rows(name, UNSEEN, name, [0.25, 0.5]), rows("Plain", UNSEEN, name, [0.5, 0.75])
    scores = pd.DataFrame([row | {"label": name} for row in ours + plain])
    table = write_report(scores, tmp_path, baseline="Plain", remarks=[name])
    assert table["trainer"].tolist() == [name, "Plain"]
    shown = name.replace("\n", r"\n").replace("\x1b", r"\x1b")
    page, markdown, latex = ((tmp_path / f"report.{form}").read_bytes().decode() for form in ("html", "md", "tex"))
    assert f"<td>{html.escape(shown)}" in page
    assert "<script" not in page
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", markdown).count(shown) >= 4  # as CommonMark displays it
    for block in markdown.split("\n\n"):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines() if line[0] == "|"}) <= 1
    for line in latex.splitlines():
        if line.endswith(r" \\"):
            assert len(re.findall(r"(?<!\\)&", line)) in (1, 2, 5)
            assert not re.search(r"(?<!\\)[#%]|^\[", line)
    assert "\x1b" not in page + markdown + latex
    values = pd.read_csv(tmp_path / "scores.csv", keep_default_na=False, dtype=str)["trainer"].tolist()
    assert values == [f"'{name}" if name[0] in "=-@" else name] * 2 + ["Plain"] * 2


def test_each_picture_has_a_different_file_name(tmp_path):
    names = ["A B", "A_B", "a b", "A$B", "北京", "上海", "../up", "x" * 300, "x" * 301]
    found = [row for name in ["Plain", *names] for row in rows(name, UNSEEN, "x", [0.5])]
    write_report(pd.DataFrame(found), tmp_path / "report", baseline="Plain")
    pictures = [path.name for path in (tmp_path / "report").glob("against_*.png")]
    assert len({name.casefold() for name in pictures}) == len(names)
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_labels_have_a_separate_table(scores, tmp_path):
    lesion = scores.assign(label="les|ion", dice=scores["dice"] / 2)
    write_report(pd.concat([scores, lesion]), tmp_path)
    labels = pd.read_csv(tmp_path / "labels.csv").set_index(["trainer", "setting", "label", "metric"])
    row = labels.loc[("nnUNetTrainer", UNSEEN, "les|ion", "dice")]
    assert row[["mean", "n"]].tolist() == [pytest.approx((6 * 0.2 + 0.4) / 7 / 2), 7]
    markdown, page, latex = ((tmp_path / f"report.{form}").read_text() for form in ("md", "html", "tex"))
    assert re.search(r"\| les\\\|ion +\| nnUNetTrainer +\| 40.0 ± 5.0 \(2\) +\| 11.4 ± 1.4 \(7\)", markdown)
    assert "les|ion" in page
    assert r"les\textbar{}ion & nnUNetTrainer & 40.0 $\pm$ 5.0 (2) & 11.4 $\pm$ 1.4 (7)" in latex


def test_a_case_that_cannot_be_shown_is_named_and_the_others_are_shown(scores, tmp_path):
    masks = np.zeros((3, 5, 6), int)

    def view(row):
        if row["case"] == "x_0":
            raise DataError("x_0.nii.gz cannot be read: cut off.")
        return CaseView(np.ones((1, 3, 5, 6)), masks, masks, (1, 1, 1))

    write_report(scores, tmp_path, view=view)
    assert (
        "nnUNetTrainer: no picture of x_0 (x_0.nii.gz cannot be read: cut off.)."
        in (tmp_path / "report.md").read_text()
    )
    assert len(list(tmp_path.glob("worst*.png"))) == 2


def test_an_interruption_keeps_the_earlier_report(scores, tmp_path, monkeypatch):
    write_report(scores, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    written = []

    def interrupt(number):
        written.append(number)
        if len(written) > 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_report(scores, tmp_path)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert after["report.html"] == before["report.html"]


def test_a_link_in_the_place_of_a_table_is_replaced_not_followed(scores, tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "report").mkdir()
    for name in ("scores.csv", "report.html", "cases.png"):
        (tmp_path / "report" / name).symlink_to(tmp_path / "precious")
    write_report(scores, tmp_path / "report")
    assert (tmp_path / "precious").read_text() == "precious"


def test_invalid_arguments_are_refused(scores, tmp_path):
    with pytest.raises(SettingsError, match=r"`metric` must be one of dice.*got 'dise'"):
        write_report(scores, tmp_path, metric="dise")
    with pytest.raises(SettingsError, match="Did you mean 'nnUNetTrainer'"):
        write_report(scores, tmp_path, baseline="nnUnetTrainer")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file is not a folder"):
        write_report(scores, tmp_path / "file")


def test_cases_of_the_validation_domain_are_in_no_score(scores, tmp_path):
    cases = rows("nnUNetTrainer", VALIDATION, "v", [0.0, 0.1]) + rows("Ours <b>", VALIDATION, "v", [1.0, 1.0])
    more = pd.concat([scores, pd.DataFrame(cases)], ignore_index=True)
    choices = pd.DataFrame({"row": ["best"], "chosen": ["Ours <b>"]})
    pd.testing.assert_frame_equal(write_report(more, tmp_path / "with"), write_report(scores, tmp_path / "without"))
    for name in ("comparisons", "domains", "labels"):
        both = [(tmp_path / folder / f"{name}.csv").read_text() for folder in ("with", "without")]
        assert both[0] == both[1]
    assert (pd.read_csv(tmp_path / "with" / "scores.csv")["setting"] == "validation").sum() == 4
    texts = {folder: (tmp_path / folder / "report.md").read_text() for folder in ("with", "without")}
    remark = (
        " The validation domain, on which settings and trainers are chosen, is v. Its cases count neither as in-domain "
        "nor as unseen, and are left out of all scores, ranks and tests."
    )
    assert texts["with"].replace(remark, "") == texts["without"]
    assert remark in texts["with"]
    write_report(more, tmp_path / "with", choices=choices)
    assert (
        "## Chosen on the validation domain\n\nThe chosen trainer has the highest mean Dice (%) over"
        in (tmp_path / "with" / "report.md").read_text()
    )
    with pytest.raises(DataError, match="All cases of third are from the validation domain"):
        write_report(pd.concat([scores, pd.DataFrame(rows("third", VALIDATION, "v", [1.0]))]), tmp_path)


def test_remarks_are_in_the_report(scores, tmp_path):
    write_report(scores, tmp_path, remarks=["Fold 3 is left out."])
    assert "Fold 3 is left out." in (tmp_path / "report.md").read_text()
