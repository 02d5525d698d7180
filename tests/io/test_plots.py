import numpy as np
import pytest
from PIL import Image

from diffusion.errors import CheckpointError
from diffusion.io import plots

EDGES = np.linspace(-10, 10, 5)


def rows(n, loss=lambda i: 1 / (i + 1), bins=lambda i: [1.0, 0.5, None, 0.1]):
    return [{"step": i, "images": (i + 1) * 1000, "loss": loss(i), "loss_by_log_snr": bins(i)} for i in range(n)]


@pytest.fixture
def figures(monkeypatch):
    """The axes of the figures that are saved."""
    saved, save = [], plots._save
    monkeypatch.setattr(plots, "_save", lambda figure, path: (saved.append(figure.axes[0]), save(figure, path)))
    return saved


def test_loss_against_images(tmp_path, figures):
    path = tmp_path / "my_run" / "loss.png"
    plots.plot_loss(rows(100) + [{"images": 1, "loss": None}, {"images": 2}], path)
    (axes,) = figures
    raw, mean = axes.lines
    np.testing.assert_array_equal(raw.get_xdata(), [(i + 1) * 1000 for i in range(100)])
    assert raw.get_ydata()[4] == 0.2 and mean.get_ydata()[0] == 1.0
    assert mean.get_ydata()[50] == pytest.approx(np.mean([1 / (i + 1) for i in range(48, 53)]))
    assert axes.get_yscale() == "log" and "my_run" in axes.get_title(loc="left")
    assert axes.get_xlabel() == "training images seen"
    assert min(Image.open(path).size) > 400
    assert np.asarray(Image.open(path).convert("L")).std() > 5


def test_a_loss_of_one_size_has_a_linear_axis_from_zero(tmp_path, figures):
    plots.plot_loss(rows(5, loss=lambda i: 0.5 + 0.01 * i), tmp_path / "loss.png", title="other")
    assert figures[0].get_yscale() == "linear" and figures[0].get_ylim()[0] == 0
    assert len(figures[0].lines) == 1 and "other" in figures[0].get_title(loc="left")


def test_loss_by_noise_early_and_late(tmp_path, figures):
    def bins(i):
        return [float(i), 1.0, None, 2.0 if i else None]

    plots.plot_loss_by_noise(rows(40, bins=bins), tmp_path / "x.png", EDGES)
    curves = {p.get_label().split(",")[0]: p.get_data().values for p in figures[0].patches}
    np.testing.assert_allclose(curves["first tenth"], [1.5, 1, np.nan, 2])
    np.testing.assert_allclose(curves["middle tenth"], [19.5, 1, np.nan, 2])
    np.testing.assert_allclose(curves["last tenth"], [37.5, 1, np.nan, 2])
    labels = [p.get_label() for p in figures[0].patches]
    assert labels[0] == "first tenth, 0 to 4k images" and labels[2] == "last tenth, 36k to 40k images"
    np.testing.assert_array_equal(figures[0].patches[0].get_data().edges, EDGES)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_short_runs(tmp_path, figures, n):
    names = ["last row"] if n == 1 else ["first row", "last row"]
    plots.plot_loss_by_noise(rows(n, bins=lambda i: [i + 1.0] * 4), tmp_path / "x.png", EDGES)
    assert [p.get_label().split(",")[0] for p in figures[0].patches] == names
    assert figures[0].patches[-1].get_data().values[0] == n
    plots.plot_loss(rows(n), tmp_path / "y.png")
    assert (tmp_path / "y.png").exists()


def test_effective_weight_measured_and_by_formula(tmp_path, figures):
    def row(i):
        return {"step": i, "images": i, "effective_weight_by_log_snr": [0.1, i / 10, None, 0.3]}

    curve = {"log_snr": [-20.0, -5.0, 0.0, 5.0], "effective_weight": [9.0, 0.2, np.inf, 0.1]}
    plots.plot_effective_weight([row(i) for i in range(40)], tmp_path / "w.png", EDGES, curve)
    (axes,) = figures
    np.testing.assert_allclose(axes.patches[0].get_data().values, [0.1, 3.75, np.nan, 0.3])
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [-5, 5])  # what is finite and within the edges
    assert axes.get_ylim() == (0, pytest.approx(1.1 * 3.75)) and (tmp_path / "w.png").exists()
    plots.plot_effective_weight([], tmp_path / "x.png", EDGES, curve)
    assert len(figures) == 2 and not figures[1].patches
    plots.plot_effective_weight([row(1)], tmp_path / "y.png", EDGES)
    assert len(figures) == 3 and not figures[2].lines


def test_effective_weights_that_one_noise_level_dwarfs_can_be_read(tmp_path, figures):
    """Those of digits.py are 60,000 at its noisiest level and 1/1000 at its cleanest: the axis was linear."""
    curve = {"log_snr": np.linspace(-9, 9, 19), "effective_weight": np.exp(-np.linspace(-9, 9, 19))}
    row = {"images": 1, "effective_weight_by_log_snr": [5000.0, 1.0, 0.0, 1e-3]}
    plots.plot_effective_weight([row], tmp_path / "w.png", EDGES, curve)
    (axes,) = figures
    low, high = axes.get_ylim()
    assert axes.get_yscale() == "log" and 0 < low < np.exp(-9) < np.exp(9) < high < 1e5
    assert axes.patches[0].get_data().baseline == low


def test_nothing_to_draw_draws_nothing(tmp_path):
    plots.plot_loss([], tmp_path / "x.png")
    plots.plot_loss([{"images": 1, "loss": None}], tmp_path / "x.png")
    plots.plot_loss_by_noise([], tmp_path / "x.png", EDGES)
    plots.plot_loss_by_noise(rows(3, bins=lambda i: [None] * 4), tmp_path / "x.png", EDGES)
    plots.plot_effective_weight(rows(3), tmp_path / "x.png", EDGES)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be written"):
        plots.plot_loss(rows(3), tmp_path / "file" / "loss.png")
