"""The table of costs, from logs and records written by hand."""

import json

import pandas as pd

from nnunet_dg.benchmark.costs import write_costs

LOG = """Epoch time: 3.0 s
Epoch time: 1.0 s
Epoch time: 1.0 s
Steps per epoch: 4. Peak memory: 2.5 GiB
"""


def test_costs_are_means_over_folds_and_adapted_rows_have_the_time_per_case(tmp_path):
    for fold, seconds in ((0, {"a": 1.0, "b": 3.0}), (1, {"c": 8.0})):
        (tmp_path / "trained" / f"fold_{fold}").mkdir(parents=True)
        text = LOG if fold == 0 else LOG.replace("2.5", "1.5")
        (tmp_path / "trained" / f"fold_{fold}" / "training_log_1.txt").write_text(text)
        predictions = tmp_path / "adapted" / f"fold_{fold}" / "validation"
        predictions.mkdir(parents=True)
        record = {"method": "tent", "validation": None, "seconds": seconds}
        (predictions / "adaptation.json").write_text(json.dumps(record))
    training = {"row": "plain", "results": str(tmp_path / "trained"), "folds": [0, 1]}
    write_costs([training], tmp_path / "costs.csv", [("plain+tent", tmp_path / "adapted")])
    table = pd.read_csv(tmp_path / "costs.csv", dtype=str, keep_default_na=False).set_index("trainer")
    assert table.loc["plain"].to_dict() == {
        "training (min)": "0.0833", "step (ms)": "250", "memory (GiB)": "2", "adaptation (s per case)": ""
    }  # fmt: skip
    assert table.loc["plain+tent"].to_dict() == {
        "training (min)": "", "step (ms)": "", "memory (GiB)": "", "adaptation (s per case)": "5"
    }  # fmt: skip

    write_costs([training], tmp_path / "costs.csv")
    assert "adaptation (s per case)" not in (tmp_path / "costs.csv").read_text()
