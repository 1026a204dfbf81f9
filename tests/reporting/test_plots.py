import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageColor

from nnunet_dg.reporting import plots
from nnunet_dg.reporting.overlay import CaseView, overlay
from nnunet_dg.reporting.plots import box_plot, curves, scatter
from nnunet_dg.reporting.scores import IN_DOMAIN, UNSEEN
from nnunet_dg.reporting.style import COLORS, style_of


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
            for (t, s), dice in values.items()
            for i, v in enumerate(dice)
        ]
    )


def points(collection) -> list[tuple[float, float]]:
    return [tuple(p) for p in np.asarray(collection.get_offsets())]


def test_the_box_plot_shows_every_case_with_in_domain_first(cases):
    figure, panels = box_plot(cases, "dice")
    assert [ax.get_title() for ax in panels] == ["x\nin-domain", "x\nunseen"]
    shown = [[points(collection) for collection in ax.collections] for ax in panels]
    assert [[sorted(x for x, _ in group) for group in panel] for panel in shown] == [
        [[0.7, 0.8, 0.9], [0.6]],
        [[0.1, 0.3], [0.5, 0.6]],
    ]
    names = [text.get_text() for text in panels[0].get_yticklabels()]
    for panel in shown:
        rows = [{round(y) for _, y in group} for group in panel]
        assert [names[row] for (row,) in rows] == ["A", "B"]
        assert max(abs(y - round(y)) for group in panel for _, y in group) < 0.3  # within the box
    medians = [line.get_xdata()[0] for ax in panels for line in ax.lines if line.get_color() == "black"]
    assert medians == pytest.approx([0.8, 0.6, 0.2, 0.55])
    assert figure.get_supxlabel() == "Dice"


@pytest.mark.parametrize(("domains", "length"), [(1, 12), (2, 1), (2, 40), (3, 12), (4, 12)])
def test_the_panels_of_the_box_plot_have_the_same_axes_and_fit_on_the_page(cases, domains, length):
    """The page is 900 pixels wide, with 110 pixels per inch; each row has the height of a trainer's name."""
    trainers = [f"{i:02}".ljust(length, "n") for i in range(12)]
    many = pd.concat([cases[cases["trainer"] == "A"].assign(trainer=trainer) for trainer in trainers])
    many = pd.concat([many.assign(domain=f"site {i} ".ljust(60, "w")) for i in range(domains)])
    figure, panels = box_plot(many, "dice")
    figure.draw_without_rendering()
    assert len(panels) == 2 * domains
    assert figure.get_size_inches()[0] * 110 <= 900
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in panels}) == 1
    bottom, top = panels[0].get_ylim()
    assert bottom > top  # the first trainer is at the top
    assert len({tuple(c.get_facecolor()[0]) for c in panels[0].collections[:8]}) == 8
    name, inside = panels[0].get_yticklabels()[0].get_window_extent(), panels[-1].get_window_extent()
    assert inside.height / 12 > name.height
    assert inside.width / figure.dpi > 1.5
    titles = [ax.title.get_window_extent() for ax in panels]
    assert name.x0 >= 0
    assert max(title.x1 for title in titles) <= figure.bbox.x1
    beside = [(a, b) for a in titles for b in titles if a is not b and abs(a.y0 - b.y0) < 1]
    assert all(a.x1 <= b.x0 or b.x1 <= a.x0 for a, b in beside)
    for column in {round(ax.get_window_extent().x0) for ax in panels}:
        lowest = min(
            (ax for ax in panels if round(ax.get_window_extent().x0) == column),
            key=lambda ax: ax.get_window_extent().y0,
        )
        assert any(text.get_visible() and text.get_text() for text in lowest.get_xticklabels())


def test_places_without_a_panel_are_empty(cases):
    five = pd.concat([cases[cases["setting"] == UNSEEN].assign(domain=f"site {i}") for i in range(5)])
    figure, panels = box_plot(five, "dice")
    assert [ax.axison for ax in figure.axes] == [True] * 5 + [False]
    assert figure.axes[:5] == panels


def test_the_scatter_plot_has_the_baseline_on_x_and_the_common_cases(cases):
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


def test_the_slice_with_most_differences_across_the_largest_spacing_is_shown():
    shown = view().slice()
    assert np.array_equal(shown.truth, view().truth[1])
    assert np.array_equal(shown.image[0], view().image[0, 1])
    assert shown.spacing == (1.0, 1.0)
    across = view((1.0, 1.0, 3.0)).slice()
    assert across.prediction.shape == (4, 5)
    right = CaseView(view().image, view().truth, view().truth, (3.0, 1.0, 1.0))
    assert right.slice().truth.sum() == 4  # the slice with most labeled voxels


def test_the_legend_names_the_labels_in_the_pictures():
    masks = view().truth  # label 1 in slice 1, which is shown; label 2 in slice 2
    case = CaseView(view().image, masks, masks, (3, 1, 1), {1: "organ", 2: "lesion"})
    figure, _ = overlay({"case": case})
    assert [text.get_text() for text in figure.legends[0].texts] == ["organ"]
    lesion = CaseView(case.image, masks == 9, 2 * (masks > 0), (3, 1, 1), {2: "lesion"})
    figure, _ = overlay({"case": case, "other": lesion})
    assert [text.get_text() for text in figure.legends[0].texts] == ["organ", "lesion"]


def test_117_labels_stay_distinguishable_and_fit_into_the_picture():
    masks = np.zeros((1, 40, 40), int)
    masks[0, ::4, ::4] = np.arange(100).reshape(10, 10) + 17
    few = np.where(masks > 47, 0, masks)  # 31 labels, with numbers up to 47
    for shown in (few, masks):
        case = CaseView(
            np.ones((1, 1, 40, 40)), shown, shown, (999, 1, 1), {n: f"vertebra number {n}" for n in range(1, 118)}
        )
        figure, axes = overlay({"case": case})
        legend = figure.legends[0]
        assert len(legend.texts) == len(np.unique(shown)) - 1
        styles = {(line.get_color(), line.get_linestyle()) for line in legend.legend_handles}
        assert len(styles) == min(32, len(legend.texts))
        figure.draw_without_rendering()
        assert legend.get_window_extent().width <= figure.bbox.width
        assert axes[0, 0].get_window_extent().height > 100


@pytest.mark.parametrize("name", ["A$\\frac{$", "$x$", "_hidden", "a\\$b$c", "x" * 200, "line\nbreak"])
def test_special_characters_in_names_are_shown_literally_in_figures(cases, name):
    renamed = cases.replace({"trainer": {"A": name}, "domain": {"x": name}})
    literal = name.replace("\n", r"\n")
    box, panels = box_plot(renamed, "dice")
    box.draw_without_rendering()
    labels = [text.get_text().strip() for text in panels[0].get_yticklabels()]
    assert [text.replace(r"\$", "$") for text in labels] == [
        literal if len(literal) < 60 else f"{literal[:57]}...",
        "B",
    ]
    assert panels[0].get_title().count("\n") == 1
    for figure, _ in (scatter(renamed, "dice", "B", name), curves(renamed, "run", "dice", "trainer", title=name),
                      overlay({name: view()})):  # fmt: skip
        figure.draw_without_rendering()


@pytest.mark.parametrize("name", ["setting", "domain", "case", "fold", "trainer"])
def test_a_trainer_may_have_the_name_of_a_column(cases, name):
    _, ax = scatter(cases.replace({"trainer": {"B": name}}), "dice", "A", name)
    assert points(ax.collections[0]) == [(0.9, 0.6)]


def test_many_domains_fit_into_a_picture(cases, monkeypatch):
    monkeypatch.setattr(plots, "TALLEST", 4.0)
    many = pd.concat([cases.assign(domain=f"site {i}") for i in range(10)])
    figure, _ = box_plot(many, "dice")
    assert figure.get_size_inches()[1] == 4.0


def test_the_overlay_draws_truth_and_prediction_next_to_the_image():
    _, axes = overlay({"case": view()})
    assert axes.shape == (1, 3)
    outlines = [len(ax.collections) for ax in axes[0]]
    assert outlines == [0, 1, 1]
    extents = [ax.collections[0].get_paths()[0].get_extents() for ax in axes[0, 1:]]
    assert extents[1].width - extents[0].width == pytest.approx(1)  # the prediction is a voxel wider


def test_the_prediction_is_labeled_with_the_name_of_its_model():
    _, axes = overlay({"case": view()}, "nnUNetTrainerDropGen")
    assert [ax.get_title() for ax in axes[0]] == ["image", "truth", "nnUNetTrainerDropGen"]


def test_color_images_are_shown_in_color():
    colors = np.random.default_rng(0).random((3, 1, 5, 6))
    masks = np.zeros((1, 5, 6), int)
    _, axes = overlay({"case": CaseView(colors, masks, masks, (999, 1, 1))})
    assert axes[0, 0].images[0].get_array().shape == (5, 6, 3)


def test_colors_differ_for_color_blind_readers_and_styles_are_unique():
    """Colors are compared as seen with deuteranopia (Viénot et al., 1999)."""
    rgb = np.array([ImageColor.getrgb(color) for color in COLORS]) / 255
    linear = rgb**2.2
    seen = linear @ np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]).T
    distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + np.eye(len(COLORS))
    assert distances.min() > 0.1
    assert len({style_of(number) for number in range(64)}) == 64
    assert all(style_of(number)[0] != style_of(number + 1)[0] for number in range(64))
    assert all(re.fullmatch("#[0-9A-F]{6}", color) for color in COLORS)
    assert Image.new("RGB", (1, 1), COLORS[0]).getpixel((0, 0)) == (0, 114, 178)
