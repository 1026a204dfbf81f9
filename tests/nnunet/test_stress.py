import pandas as pd
import pytest

from nnunet_dg.nnunet.stress import figure, identity_of, overview


@pytest.fixture
def table() -> pd.DataFrame:
    """Two trainers, gamma and weight noise; one case has nothing to find."""
    rows = [
        {
            "trainer": trainer,
            "kind": kind,
            "strength": strength,
            "case": case,
            "draw": 0,
            "label": "organ",
            "dice": dice,
        }
        for trainer, gain in (("A", 0.0), ("B", 0.2))
        for kind, strength, values in (
            ("gamma", 1.0, (0.7, 0.5, float("nan"))),
            ("gamma", 4.0, (0.3, 0.1, float("nan"))),
            ("weight noise", 0.0, (0.7, 0.5, float("nan"))),
        )
        for case, dice in zip("xyz", (v + gain for v in values), strict=True)
    ]
    return pd.DataFrame(rows)


def test_curves_are_means_of_cases_with_the_identity_marked(table):
    _, (gamma, noise) = figure(table)
    assert (gamma.get_title(), noise.get_title()) == ("gamma", "weight noise")
    first, second = (container.lines[0] for container in gamma.containers)
    assert first.get_xdata().tolist() == [1, 4]
    assert first.get_ydata().tolist() == pytest.approx([0.6, 0.2])
    assert second.get_ydata().tolist() == pytest.approx([0.8, 0.4])
    for ax, kind in ((gamma, "gamma"), (noise, "weight noise")):
        vertical = [list(line.get_xdata()) for line in ax.lines if line.get_linestyle() == "--"]
        assert [identity_of(kind)] * 2 in vertical
    assert gamma.get_xscale() == "log"


def test_the_overview_has_one_column_per_trainer(table):
    rows = overview(table).set_index(["kind", "strength"])
    assert rows.loc[("gamma", 4.0)].to_dict() == {"A": 20.0, "B": 40.0}
