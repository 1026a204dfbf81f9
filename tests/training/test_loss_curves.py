"""The curves of loss terms in nnU-Net's progress picture."""

from PIL import Image

from nnunet_dg.training.loss_curves import add_term_curves, draw_term_curves


def test_each_term_has_a_panel_with_its_values():
    _, axes = draw_term_curves({"a": [3, 2], "b": [1, 1], "c": [0, 0], "d": [5, 4]})
    assert [ax.get_title() for ax in axes] == ["a", "b", "c", "d"]
    assert axes[3].lines[0].get_ydata().tolist() == [5, 4]


def test_panels_are_appended_below_the_picture(tmp_path):
    picture = tmp_path / "progress.png"
    Image.new("RGB", (300, 540), "red").save(picture)
    add_term_curves(picture, {"a": [1, 2], "b": [2, 1]})
    with Image.open(picture) as combined:
        assert combined.size[0] == 300
        assert combined.size[1] > 540
        assert combined.getpixel((150, 539)) == (255, 0, 0)
        below = combined.crop((0, 540, *combined.size))
        assert len(below.getcolors(10**6)) > 2
