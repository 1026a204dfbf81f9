import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from helpers import shared
from scipy.ndimage import gaussian_filter

from nnunet_dg.cli import main
from nnunet_dg.robustness.feature_stability import bars, choose, feature_slices, gamma_curves


@pytest.fixture
def images(tmp_path):
    """A textured ball in two contrasts. The second contrast maps both extremes of the first to the same intensity."""
    rng = np.random.default_rng(0)
    texture = gaussian_filter(rng.standard_normal((12, 24, 24)), 1.5)
    z, y, x = np.indices(texture.shape)
    ball = (z - 6) ** 2 * 4 + (y - 12) ** 2 + (x - 12) ** 2 < 100
    paths = {}
    for name, contrast in (("bright", texture), ("dark", abs(texture))):
        image = sitk.GetImageFromArray(np.where(ball, 300 + 200 * contrast, 0).astype(np.float32))
        image.SetSpacing((1, 1, 3))
        paths[name] = tmp_path / f"{name}.nii.gz"
        sitk.WriteImage(image, paths[name])
    return paths


def run(images, output, *options):
    return main(["stability", "features", *map(str, images), "-o", str(output), *options])


def test_contrasts_are_compared_by_cka_and_plotted(images, tmp_path, capsys):
    assert run(images.values(), tmp_path / "out", "--patch", "12", "20", "20") == 0
    table = pd.read_csv(tmp_path / "out" / "contrasts.csv").set_index("representation")
    assert table.loc["intensity", ["first", "second"]].tolist() == ["bright", "dark"]
    first, second = (sitk.GetArrayFromImage(sitk.ReadImage(path))[:, 2:22, 2:22] for path in images.values())
    voxels = first > 100  # like Otsu's threshold, between the background and the ball
    expected = np.corrcoef(first[voxels], second[voxels])[0, 1] ** 2
    assert table.loc["intensity", "cka"] == pytest.approx(expected, abs=1e-6)
    assert table.loc["intensity", "cka"] < table.loc["mind", "cka"] < 1
    assert f"{table.loc['mind', 'cka']:.3f}" in capsys.readouterr().out
    assert table.loc["intensity", "recall"] == 0  # the cosine of single channels is 1 or -1
    assert table.loc["mind", "recall"] > 0.02
    common = (slice(3, 9), slice(5, 15), slice(3, 17))  # of two patches that are (3, 5, 3) apart
    inner = np.corrcoef(first[common][voxels[common]], second[common][voxels[common]])[0, 1] ** 2
    assert table.loc["intensity", "cka_shifted"] == pytest.approx(inner, abs=1e-6)
    single = pd.read_csv(tmp_path / "out" / "images.csv").set_index("representation")
    assert single["image"].tolist() == ["bright", "dark"] * 2
    assert (single["cka_unrelated"] < 0.1).all()
    assert single.loc["intensity", "effective_rank"].tolist() == pytest.approx([1, 1])
    assert single.loc["mind", "effective_rank"].between(4, 12).all()
    gammas = pd.read_csv(tmp_path / "out" / "gamma.csv")
    assert gammas[gammas["gamma"] == 1]["cka"].tolist() == pytest.approx([1] * 4)
    assert (gammas[gammas["gamma"] != 1]["cka"] < 1).all()
    assert len(gammas) == 2 * 2 * 5
    for name in ("contrasts", "gamma", "features"):
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 5000


def test_images_that_cannot_be_compared_are_named(images, tmp_path, capsys):
    other = sitk.ReadImage(images["dark"])
    other.SetSpacing((1, 1, 2))
    sitk.WriteImage(other, tmp_path / "other.nii.gz")
    for given, options, message in (
        ([images["bright"]], (), "needs at least two co-registered images"),
        ([images["bright"], tmp_path / "other.nii.gz"], (), "other is not on the grid of bright"),
        ([images["bright"], tmp_path / "none.nii.gz"], (), "cannot be read"),
        ([images["bright"], images["bright"]], (), "Two images have the same name"),
        (images.values(), ("--patch", "4", "4"), "--patch needs one number per axis, 3; got 2"),
        (images.values(), ("-x", "minds"), "minds"),
    ):
        assert run(given, tmp_path / "out", *options) == 1
        assert message in capsys.readouterr().err
    assert run([f"a={images['bright']}", f"b={images['bright']}"], tmp_path / "out") == 0


def test_a_bug_in_an_extractor_keeps_its_traceback(images, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise ValueError("a bug")

    monkeypatch.setattr("nnunet_dg.extractors.build_extractor", fail)
    assert run(images.values(), tmp_path / "out") == 1
    assert "Traceback" in capsys.readouterr().err


def slices_of(images, folder, axis):
    """The middle slice of each image, as a 2-D image, or as a volume with one slice."""
    result = []
    for name, path in images.items():
        volume = sitk.GetArrayFromImage(sitk.ReadImage(path))[6]
        image = sitk.GetImageFromArray(volume if axis is None else np.expand_dims(volume, axis))
        result.append(folder / f"{name}.mha")
        sitk.WriteImage(image, result[-1])
    return result


@pytest.mark.parametrize("options", [(), ("--patch", "20", "20"), ("--patch", "500", "500")])
def test_one_slice_is_compared_in_two_dimensions(images, tmp_path, options):
    """A 2-D image and volumes with one slice along any axis give the same numbers, even if the patch is larger."""
    tables = []
    for axis in (None, 0, 1, 2):
        (tmp_path / str(axis)).mkdir()
        paths = slices_of(images, tmp_path / str(axis), axis)
        assert run(paths, tmp_path / str(axis) / "out", *options) == 0
        tables.append(pd.read_csv(tmp_path / str(axis) / "out" / "contrasts.csv"))
        assert (tmp_path / str(axis) / "out" / "features.png").stat().st_size > 5000
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])


def test_a_grid_is_compared_by_its_voxels(images, tmp_path, capsys):
    """A shift by half a voxel is a different grid, and one by a hundredth is not, whether in micrometers or mm."""
    for scale in (1, 1e-3):
        paths = []
        for name, shift in (("bright", 0), ("dark", 0.01), ("away", 0.5)):
            image = sitk.ReadImage(images["bright" if name == "away" else name])
            spacing = [scale * mm for mm in image.GetSpacing()]
            image.SetSpacing(spacing)
            image.SetOrigin([shift * mm for mm in spacing])
            paths.append(tmp_path / f"{name}.mha")
            sitk.WriteImage(image, paths[-1])
        assert run(paths[:2], tmp_path / "out") == 0
        assert run([paths[0], paths[2]], tmp_path / "out") == 1
        assert "away is not on the grid of bright: origin" in capsys.readouterr().err


def test_invalid_images_are_named(images, tmp_path, capsys):
    bright = sitk.GetArrayFromImage(sitk.ReadImage(images["bright"]))
    odd = {
        "several channels": (np.stack([bright] * 3, -1), "has 3 channels"),
        "not finite": (np.where(bright > 0, np.nan, bright), "contains NaN or infinite values"),
        "empty": (0 * bright, "There is no foreground"),
    }
    for name, (array, message) in odd.items():
        path = tmp_path / f"{name}.mha"
        image = sitk.GetImageFromArray(array, isVector=array.ndim == 4)
        image.SetSpacing((1, 1, 3))
        sitk.WriteImage(image, path)
        for pair in ([path, images["bright"]], [images["bright"], path]):
            if name == "empty" and pair[1] == path:
                continue  # the foreground is that of the first image
            assert run(pair, tmp_path / "out") == 1
            printed = capsys.readouterr().err
            assert message in printed.splitlines()[-1]
            assert "Traceback" not in printed


def test_extractors_that_need_volumes_refuse_slices(images, tmp_path, capsys):
    paths = slices_of(images, tmp_path, None)
    assert run(paths, tmp_path / "out", "-x", "anatomix") == 1
    printed = capsys.readouterr().err
    assert "anatomix" in printed.lower()
    assert "Traceback" not in printed


def test_special_characters_in_names_are_not_read_as_formulas(images, tmp_path):
    named = [f"${name}$ \\frac{{_={path}" for name, path in images.items()]
    assert run(named, tmp_path / "out") == 0
    suffixes = sorted(path.suffix for path in (tmp_path / "out").iterdir())
    assert suffixes == [".csv"] * 3 + [".png"] * 3


def test_chosen_voxels_are_foreground_and_reproducible():
    foreground = np.zeros((50, 50, 50), bool)
    foreground[10:, 5:] = True
    chosen = choose(foreground)
    assert len(chosen) == len(set(chosen)) == 50_000
    assert foreground.ravel()[chosen].all()
    assert np.array_equal(chosen, choose(foreground))


def test_figures_show_the_values_of_the_tables():
    pairs = [("x", "a", "b", 0.5), ("x", "a", "c", 0.25), ("y", "a", "b", 1.0), ("y", "a", "c", 0.75)]
    contrasts = pd.DataFrame(pairs, columns=["representation", "first", "second", "cka"])
    _, ax = bars(contrasts)
    assert [[bar.get_height() for bar in group] for group in ax.containers] == [[0.5, 0.25], [1.0, 0.75]]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["a\nb", "a\nc"]
    gammas = pd.DataFrame(
        {"representation": ["x"] * 4, "image": ["a", "b"] * 2, "gamma": [1, 1, 2, 2], "cka": [1, 1, 0.4, 0.8]}
    )
    _, ax = gamma_curves(gammas)
    assert ax.containers[0].lines[0].get_ydata().tolist() == pytest.approx([1, 0.6])
    image = np.random.default_rng(0).random((4, 6, 8))
    features = np.random.default_rng(1).random((5, 4, 6, 8))
    maps, voxels = {"mind": {"a": features}}, {"mind": {"a": features.reshape(5, -1).T}}
    _, axes = feature_slices({"a": image}, maps, voxels, (3, 1, 1))
    assert np.array_equal(axes[0, 0].images[0].get_array(), image[2])
    assert axes[0, 1].images[0].get_array().shape == (6, 8, 3)
    _, axes = feature_slices({"a": image}, maps, voxels, (1, 1, 3))
    assert np.array_equal(axes[0, 0].images[0].get_array(), image[..., 4])


def test_mind_is_more_stable_than_intensity_across_real_contrasts(tmp_path):
    paths = [shared("data", "contrasts_open_ms", f"patient19_{name}.nii.gz") for name in ("T1", "T2")]
    assert run(paths, tmp_path, "--patch", "64", "64", "64") == 0
    cka = pd.read_csv(tmp_path / "contrasts.csv").set_index("representation")["cka"]
    assert cka["mind"] > cka["intensity"]
