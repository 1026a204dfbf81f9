import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageColor

from nnunet_dg.evaluation.overlay import CaseView, overlay
from nnunet_dg.evaluation.plots import box_plot, curves, scatter
from nnunet_dg.evaluation.scores import IN_DOMAIN, UNSEEN
from nnunet_dg.evaluation.style import COLORS, style_of


@pytest.fixture
def cases() -> pd.DataFrame:
    values = {
        ("A", IN_DOMAIN): [0.9, 0.8, 0.7],
        ("B", IN_DOMAIN): [0.6],
        ("A", UNSEEN): [0.1, 0.3],
        ("B", UNSEEN): [0.5, 0.6],
    }
    return pd.DataFrame(
        [
            {"trainer": t, "run": 1, "fold": "0", "case": f"c{i}", "domain": "x", "setting": s, "dice": v}
            for (t, s), of in values.items()
            for i, v in enumerate(of)
        ]
    )


def points(collection) -> list[tuple[float, float]]:
    return [tuple(p) for p in np.asarray(collection.get_offsets())]


def test_the_box_plot_shows_every_case_in_its_domain_in_domain_first(cases):
    figure, ax = box_plot(cases, "dice")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["x\nin-domain", "x\nunseen"]
    shown = [points(collection) for collection in ax.collections if len(collection.get_offsets())]
    assert [sorted(y for _, y in group) for group in shown] == [[0.7, 0.8, 0.9], [0.1, 0.3], [0.6], [0.5, 0.6]]
    assert [round(np.mean([x for x, _ in group])) for group in shown] == [0, 1, 0, 1]
    medians = [line.get_ydata()[0] for line in ax.lines if line.get_color() == "black"]
    assert medians == pytest.approx([0.8, 0.2, 0.6, 0.55])
    assert [text.get_text() for text in figure.legends[0].texts] == ["A", "B"]


def test_the_scatter_has_the_baseline_on_x_and_cases_that_both_have(cases):
    _, ax = scatter(cases, "dice", "A", "B")
    inside, unseen = ax.collections
    assert points(inside) == [(0.9, 0.6)]
    assert sorted(points(unseen)) == [(0.1, 0.5), (0.3, 0.6)]
    assert ax.get_xlim() == ax.get_ylim() == (0, 1)
    assert ("A" in ax.get_xlabel(), ax.get_ylabel()) == (True, "B")


def test_curves_are_means_with_the_identity_marked():
    table = pd.DataFrame({"gamma": [1, 1, 2, 2], "dice": [0.8, 0.6, 0.4, 0.4], "trainer": ["A"] * 4})
    _, ax = curves(table, "gamma", "dice", "trainer", identity=1)
    line = ax.containers[0].lines[0]
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([1, 2], pytest.approx([0.7, 0.4]))
    (bars,) = ax.containers[0].lines[2]
    assert bars.get_segments()[0][:, 1].tolist() == pytest.approx([0.6, 0.8])  # 0.7 +- 0.1
    assert [list(dashed.get_xdata()) for dashed in ax.lines if dashed.get_linestyle() == "--"] == [[1, 1]]


def view(spacing=(3.0, 1.0, 1.0)) -> CaseView:
    truth, prediction = np.zeros((2, 4, 5, 6), int)
    truth[1, :2, :2] = 1
    prediction[1, :2, :3] = 1  # two voxels differ in slice 1
    truth[2, 1, 1] = 2  # one in slice 2
    return CaseView(np.arange(120.0).reshape(1, 4, 5, 6), truth, prediction, spacing)


def test_a_case_is_shown_where_most_is_wrong_across_the_widest_spacing():
    shown = view().slice()
    assert np.array_equal(shown.truth, view().truth[1])
    assert np.array_equal(shown.image[0], view().image[0, 1])
    assert shown.spacing == (1.0, 1.0)
    across = view((1.0, 1.0, 3.0)).slice()
    assert across.prediction.shape == (4, 5)
    right = CaseView(view().image, view().truth, view().truth, (3.0, 1.0, 1.0))
    assert right.slice().truth.sum() == 4  # where most has a label


def test_the_legend_names_labels():
    masks = view().truth
    figure, _ = overlay({"case": CaseView(view().image, masks, masks, (3, 1, 1), {1: "organ", 2: "lesion"})})
    assert [text.get_text() for text in figure.legends[0].texts] == ["organ", "lesion"]


def test_the_overlay_draws_truth_and_prediction_beside_the_image():
    _, axes = overlay({"case": view()})
    assert axes.shape == (1, 3)
    outlines = [len(ax.collections) for ax in axes[0]]
    assert outlines == [0, 1, 1]
    extents = [ax.collections[0].get_paths()[0].get_extents() for ax in axes[0, 1:]]
    assert extents[1].width - extents[0].width == pytest.approx(1)  # the prediction is a voxel wider


def test_colour_images_stay_coloured():
    colours = np.random.default_rng(0).random((3, 1, 5, 6))
    masks = np.zeros((1, 5, 6), int)
    _, axes = overlay({"case": CaseView(colours, masks, masks, (999, 1, 1))})
    assert axes[0, 0].images[0].get_array().shape == (5, 6, 3)


def test_colours_differ_for_colour_blind_people_and_on_a_grey_print():
    """By what deuteranopia leaves of them (Viénot et al., 1999); and with line and marker no two trainers are alike."""
    rgb = np.array([ImageColor.getrgb(color) for color in COLORS]) / 255
    linear = rgb**2.2
    seen = linear @ np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]).T
    distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + np.eye(len(COLORS))
    assert distances.min() > 0.1
    assert len({style_of(number) for number in range(64)}) == 64
    assert all(style_of(number)[0] != style_of(number + 1)[0] for number in range(64))
    assert all(re.fullmatch("#[0-9A-F]{6}", color) for color in COLORS)
    assert Image.new("RGB", (1, 1), COLORS[0]).getpixel((0, 0)) == (0, 114, 178)
