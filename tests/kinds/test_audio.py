"""Sound from files and arrays to x0 and back, in both forms, and recordings that do not fit."""
import dataclasses
import io
import wave
from importlib.util import find_spec

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion import build
from diffusion import config as config_lib
from diffusion.data import pipeline
from diffusion.data.files import File
from diffusion.data.sources import gather_examples
from diffusion.errors import ConfigError, DataError, DivergedError, FieldError
from diffusion.families import BY_NAME
from diffusion.io import sound
from diffusion.kinds.audio import DEVIATION, audio

RATE, LENGTH = 8000, 96 * 8
WAVEFORM = audio(length=LENGTH, rate=RATE)
STFT = audio(length=LENGTH, rate=RATE, form="stft", bands=(0.3,))
PCM = np.random.default_rng(0).integers(-32768, 32768, (3, LENGTH, 1)).astype(np.int16)
PCM[1, 200:] = 0
PCM[2] //= 1000
decodes = pytest.mark.skipif(find_spec("soundfile") is None, reason="the extra 'audio' is not installed")


@dataclasses.dataclass
class Listed:
    """A source of raw examples."""
    raw: list
    encoded: bool = True
    num_classes: int = 10

    def __len__(self):
        return len(self.raw)

    def __getitem__(self, i):
        return self.raw[i]


def file(pcm, where="a/b.wav", rate=RATE):
    return File(where, sound.wav(pcm, rate))


def ramp(n):
    """Each sample is its own place, so that a part shows where it was."""
    return np.arange(n, dtype=np.int16)[:, None]


# ---- from recordings to records -----------------------------------------------------------------------------------

@decodes
def test_a_file_and_an_array_give_the_same_record():
    for raw in ({"file": file(PCM[0])}, {"audio": PCM[0]}, {"audio": PCM[0, :, 0]},
                {"audio": PCM[0].astype(np.float32) / 32768}):
        found = WAVEFORM.load({**raw, "label": 3, "speed": 1.5}, None)
        np.testing.assert_array_equal(found["audio"], PCM[0])
        assert set(found) == {"audio", "label", "speed"} and found["label"] == 3


@pytest.mark.parametrize("raw_of", [lambda x: {"audio": x}, pytest.param(lambda x: {"file": file(x)}, marks=decodes)])
def test_shorter_ones_end_in_silence_and_longer_ones_are_cut(raw_of):
    masked = dataclasses.replace(WAVEFORM, mask_padding=True)
    short = masked.load(raw_of(1 + ramp(300)), None)
    np.testing.assert_array_equal(short["audio"], np.concatenate([1 + ramp(300), np.zeros((LENGTH - 300, 1))]))
    assert short["mask"].sum() == 300 and short["mask"][:300].all()
    assert WAVEFORM.load(raw_of(ramp(LENGTH + 21)), None)["audio"][0, 0] == 10
    random = dataclasses.replace(masked, crop="random")
    rng, starts = np.random.default_rng(0), set()
    for _ in range(60):
        found = random.load(raw_of(ramp(LENGTH + 3)), rng)
        np.testing.assert_array_equal(np.diff(found["audio"][:, 0]), 1)
        starts.add(int(found["audio"][0, 0]))
        assert found["mask"].all()
    assert starts == {0, 1, 2, 3} and random.draws and not masked.draws
    assert random.load(raw_of(ramp(LENGTH + 21)), None)["audio"][0, 0] == 10
    assert masked.load(raw_of(ramp(LENGTH + 21)), np.random.default_rng(0))["audio"][0, 0] == 10


def test_a_mask_of_arrays_is_where_they_end():
    raw = {"audio": 1 + ramp(LENGTH), "mask": np.arange(LENGTH) < 100}
    masked = dataclasses.replace(WAVEFORM, mask_padding=True).load(raw, None)
    assert masked["mask"].sum() == 100 and masked["audio"].max() == 100
    assert "mask" not in WAVEFORM.load(raw, None)


@decodes
def test_crops_are_drawn_by_the_place_in_the_stream():
    spec = audio(length=LENGTH, rate=RATE, crop="random")
    source = Listed([{"file": file(ramp(LENGTH + 500)), "label": i} for i in range(3)])

    def first(workers=0):
        it = pipeline.batches(source, batch_size=4, seed=0, load=spec.load)
        return [next(it)["audio"][:, 0, 0].tolist() for _ in range(3)]
    assert first() == first() and len(set(sum(first(), []))) > 8


@decodes
def test_files_of_another_rate_and_of_two_channels_are_converted():
    pytest.importorskip("soxr", reason="the extra 'audio' is not installed")
    tone = lambda rate: (12000 * np.sin(2 * np.pi * 300 * np.arange(rate) / rate)).astype(np.int16)  # noqa: E731
    stereo = np.stack([tone(16000), tone(16000) // 2], axis=1)
    found = WAVEFORM.load({"file": file(stereo, rate=16000)}, None)["audio"][:, 0].astype(float)
    np.testing.assert_allclose(found, (0.75 * tone(8000))[3616:3616 + LENGTH], atol=40)
    both = audio(length=LENGTH, rate=16000, channels=2)
    np.testing.assert_array_equal(both.load({"file": file(stereo, rate=16000)}, None)["audio"],
                                  stereo[7616:7616 + LENGTH])


@pytest.mark.parametrize("raw, message", [
    pytest.param({"file": File("x/1.wav", b"")}, "x/1.wav is empty", marks=decodes),
    pytest.param({"file": File("x/1.wav", b"\0" * 99)}, "x/1.wav is not a sound file", marks=decodes),
    pytest.param({"file": File("x/1.wav", sound.wav(PCM[0], RATE)[:500])}, "x/1.wav is incompl", marks=decodes),
    ({"file": (File("x/1.png", b""), File("x/2.png", b""))}, "x/1.png is one of several files"),
    ({"image": np.zeros((8, 8, 1), np.uint8)}, "takes files or records that hold 'audio', but the data have image"),
    ({"audio": np.zeros((LENGTH, 2), np.int16)}, "is an array .768, 2., but the config asks for .samples, 1."),
    ({"audio": np.zeros((0, 1), np.int16)}, "is an array .0, 1."),
    ({"audio": np.zeros((LENGTH, 1), np.uint8)}, "is uint8: give int16, or floats"),
    ({"audio": np.full((LENGTH, 1), np.nan)}, "NaN, infinite or far outside"),
    ({"audio": np.full((LENGTH, 1), 3000.0)}, "NaN, infinite or far outside"),
])
def test_what_cannot_be_a_clip(raw, message):
    with pytest.raises(DataError, match=message):
        WAVEFORM.check(Listed([raw]), "config.data")
    with pytest.raises(DataError, match="has no examples"):
        WAVEFORM.check(Listed([]), "config.data")


# ---- from records to x0 and back ----------------------------------------------------------------------------------

def x0_of(spec, **record):
    return np.asarray(jax.jit(lambda record: spec.prepare(record).x0)({"audio": PCM, **record}))


@pytest.mark.parametrize("spec", [WAVEFORM, STFT, audio(length=LENGTH, rate=RATE, form="stft", bands=(0.1,) * 16,
                                                        frequencies=16, hop=24, compress=0.3)])
def test_finish_inverts_prepare(spec):
    x0 = x0_of(spec)
    assert x0.shape == (3, *spec.shape) and x0.dtype == np.float32
    assert np.abs(spec.finish(x0).astype(int) - PCM).max() <= 1
    assert spec.prepare({"audio": PCM, "label": np.arange(3)}).cond["label"].tolist() == [0, 1, 2]
    assert spec.pooled(x0).shape == (3, 128) and np.isfinite(spec.pooled(x0)).all()


def test_the_levels_of_a_waveform_are_even_and_reach_the_bounds():
    every = np.arange(-32768, 32768, dtype=np.int16).reshape(1, -1, 1)
    x0 = np.asarray(WAVEFORM.prepare({"audio": every}).x0, np.float64)[0, :, 0]
    np.testing.assert_allclose(x0, np.linspace(-1, 1, WAVEFORM.levels), atol=1e-7)
    assert (x0[0], x0[-1]) == WAVEFORM.bounds
    np.testing.assert_array_equal(WAVEFORM.finish(x0[None, :, None]), every)
    np.testing.assert_array_equal(WAVEFORM.finish(np.float32([[[-2], [2]]])), [[[-32768], [32767]]])


def test_a_spectrogram_is_scaled_by_its_bands():
    source = Listed([{"audio": x} for x in np.random.default_rng(0).normal(0, 0.1, (20, LENGTH, 1))], encoded=False)
    bare = audio(length=LENGTH, rate=RATE, form="stft")
    assert not bare.measured and WAVEFORM.measured and (STFT.bounds, STFT.levels) == (None, None)
    spec = audio(length=LENGTH, rate=RATE, form="stft", **bare.measure(source))
    records = np.stack([spec.load(raw, None)["audio"] for raw in source])
    x0 = np.asarray(spec.prepare({"audio": records}).x0)
    np.testing.assert_allclose(np.sqrt((x0 ** 2).mean((0, 2, 3))), DEVIATION, rtol=2e-3)
    assert len(spec.bands) == 64 and spec.measured
    with pytest.raises(ValueError, match="not measured"):
        bare.prepare({"audio": PCM})


def test_quiet_frequencies_are_not_blown_up_and_silence_cannot_be_measured():
    time = np.arange(LENGTH) / RATE
    tone = Listed([{"audio": 0.5 * np.sin(2 * np.pi * 1000 * time)}], encoded=False)
    bands = audio(length=LENGTH, rate=RATE, form="stft", compress=1.0).measure(tone)["bands"]
    assert np.argmax(bands) == 16 and np.isclose(min(bands), max(bands) / 50, rtol=1e-3)
    silence = Listed([{"audio": np.zeros(300)}] * 3, encoded=False)
    with pytest.raises(DataError, match="All 3 clips of config.data that were read are silent"):
        audio(length=LENGTH, rate=RATE, form="stft").measure(silence)
    assert np.isfinite(np.asarray(STFT.prepare({"audio": np.zeros((1, LENGTH, 1), np.int16)}).x0)).all()


def test_a_mask_hides_what_follows_the_end():
    masked = dataclasses.replace(WAVEFORM, mask_padding=True)
    mask = np.arange(LENGTH) < np.array([LENGTH, 200, 5])[:, None]
    found = masked.prepare({"audio": PCM, "mask": mask})
    np.testing.assert_array_equal(found.mask[..., 0], mask)
    assert not np.asarray(found.x0)[~mask].any() and WAVEFORM.prepare({"audio": PCM}).mask is None
    assert masked.stored["mask"] == ((LENGTH,), np.bool_) and "mask" not in WAVEFORM.stored


@pytest.mark.parametrize("spec", [WAVEFORM, STFT])
def test_nan_is_no_sound(spec):
    x0 = np.zeros((4, *spec.shape), np.float32)
    x0[1:3, 0, 0] = np.nan
    with pytest.raises(DivergedError, match="2 of 4 sampled clips contain NaN"):
        spec.finish(x0)
    with pytest.raises(DataError, match="must be int16"):
        spec.prepare({"audio": PCM.astype(np.float32)})


@pytest.mark.parametrize("keys, message", [
    (dict(length=1), "length = 1"), (dict(rate=30), "rate = 30: must be 1,000 to 768,000 Hz"), (dict(channels=0), "ch"),
    (dict(bands=(1.0,)), "bands = .*: is of spectrograms"),
    (dict(form="stft", mask_padding=True), "mask_padding = True: is for waveforms"),
    (dict(form="stft", length=1000), "length = 1000: must be a multiple of data.hop = 96: .* are 960 and 1056"),
    (dict(form="stft", length=960, bands=(1.0, 2.0)), "one positive number, or one for each of the 64"),
    (dict(form="stft", length=960, bands=(-1.0,)), "one positive number"),
])
def test_impossible_keys_are_refused(keys, message):
    with pytest.raises(FieldError, match=message):
        audio(**keys)


def test_the_key_is_named_in_a_config():
    with pytest.raises(ConfigError, match="config.data.hop = 10: is at least data.frequencies = 64"):
        BY_NAME["kind"].make({"kind": "audio", "length": 960, "rate": 8000, "channels": 1, "crop": "center",
                              "form": "stft", "mask_padding": False, "frequencies": 64, "hop": 10, "compress": 0.5,
                              "bands": ()})


# ---- what is written ----------------------------------------------------------------------------------------------

def test_clips_are_written_as_files_an_array_a_picture_and_a_page(tmp_path):
    clips = np.concatenate([PCM] * 35)
    titles = [f"class {i} <b>\n" for i in range(len(clips))]
    assert WAVEFORM.write(tmp_path / "out", iter([clips[:50], clips[50:]]), len(clips), titles) == (
        "index.html, grid.png and samples.npz")
    with np.load(tmp_path / "out" / "samples.npz") as archive:
        np.testing.assert_array_equal(archive["arr_0"], clips)
        assert archive["rate"] == RATE and archive["arr_0"].dtype == np.int16
    assert len(list((tmp_path / "out").glob("0*.wav"))) == 105
    with wave.open(str(tmp_path / "out" / "000104.wav")) as one:
        assert one.getparams()[:4] == (1, 2, RATE, LENGTH)
        np.testing.assert_array_equal(np.frombuffer(one.readframes(LENGTH), "<i2"), clips[104, :, 0])
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<audio") == 100 and "class 99 &lt;b&gt; <a href=\"000099.wav\">" in page
    assert "105 clips of 0.096 s at 8,000 Hz, the first 100." in page and "<script" not in page and "http" not in page
    with pytest.raises(ConfigError, match="holds samples already .000000.wav"):
        WAVEFORM.write(tmp_path / "out", iter([clips]), len(clips))


def test_a_picture_shows_loud_tones_where_they_are(tmp_path):
    time = np.arange(LENGTH) / RATE
    tone = 16000 * np.sin(2 * np.pi * 1000 * time)
    tone[LENGTH // 2:] = 0
    clips = np.stack([tone, np.zeros(LENGTH)]).astype(np.int16)[..., None]
    STFT.preview(tmp_path / "p.png", clips, ["a tone", ""])
    picture = np.asarray(Image.open(tmp_path / "p.png").convert("L")).astype(float)
    spectrogram = picture[30 + 16 + 44:30 + 16 + 44 + 96]
    first, second = spectrogram[:, 8:240], spectrogram[:, 248:480]
    assert first[:, :90].max() > 200 and first[:, 185:].max() < 5 and second.max() < 5
    loudest = 96 - first[:, :90].mean(1).argmax()  # of 96 rows, 0 .. 4 kHz on the mel scale: 1 kHz is mel 15 of 35.2
    assert abs(loudest / 96 - 15 / 35.2) < 0.04
    STFT.preview(tmp_path / "silence.png", clips[1:])
    assert np.asarray(Image.open(tmp_path / "silence.png").convert("L"))[90:186, 8:240].max() < 5


def test_two_channels_are_written_and_drawn(tmp_path):
    spec = audio(length=LENGTH, rate=RATE, channels=2, form="stft", bands=(0.3,))
    clips = spec.finish(np.asarray(spec.prepare({"audio": np.concatenate([PCM, PCM // 2], axis=-1)}).x0))
    spec.write(tmp_path, iter([clips]), 3)
    with wave.open(io.BytesIO((tmp_path / "000000.wav").read_bytes())) as one:
        assert one.getnchannels() == 2


# ---- by a config --------------------------------------------------------------------------------------------------

SMALL = {"network.num_classes": -1, "network.channels": 8, "data.length": LENGTH, "data.rate": RATE,
         "optimizer.warmup": "2 steps", "train.batch_size": 4, "train.duration": "4 steps",
         "train.log_every": "2 steps", "train.sample_every": "4 steps", "train.checkpoint_every": "2 steps",
         "ema.half_life": "8 images", "sample.steps": 3, "likelihood.steps": 2, "process.steps": 5,
         "sample.batch_size": 4}
FORMS = {"waveform": ("mlp", {"network.depth": 1}, (LENGTH, 1)),
         "stft": ("unet", {"network.multipliers": (1, 1), "network.blocks": 1, "network.groups": 4,
                           "network.attention_resolutions": (), "data.frequencies": 16, "data.hop": 24}, (16, 32, 2))}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Six .wav files of three lengths in two class folders."""
    folder = tmp_path_factory.mktemp("data")
    for i in range(6):
        path = folder / "train" / ("no", "yes")[i % 2] / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sound.wav(PCM[i % 3, :LENGTH - 100 * (i // 2)], RATE))
    return folder


@decodes
@pytest.mark.parametrize("form", ["waveform", pytest.param("stft", marks=pytest.mark.slow)])
def test_a_folder_of_recordings_trains_samples_and_has_a_likelihood(recordings, tmp_path, form):
    network, keys, shape = FORMS[form]
    estimator = "vlb" if form == "waveform" else None
    config = config_lib.base(data="folder", kind="audio", network=network, solver="ddim", spacing="linspace",
                             **{"estimator": estimator} if estimator else {})
    config = build.measured(config_lib.override(config, SMALL | keys | {
        "data.dir": str(recordings), "data.labels": "folders", "data.form": form}))
    build.check(config, "train")
    assert config.network.num_classes == 2 and len(config.data.bands) == (16 if form == "stft" else 0)
    model = build.model(config)
    assert model.shape == shape and build.clips(config) == (form == "waveform")
    parts = build.training(config, model)
    state = parts.create_state()
    params = jax.tree.map(np.array, state.params)
    _, metrics = parts.program(0)(state, jax.tree.map(lambda x: np.asarray(x)[None], next(parts.data)), None)
    assert np.isfinite(metrics.loss).all()
    clips = model.spec.finish(next(build.generate(config, model)(params.get("online", params), 0, 0, 3)))
    assert clips.shape == (3, LENGTH, 1) and clips.dtype == np.int16
    assert "index.html" in model.spec.write(tmp_path / "out", iter([clips]), 3, build.titles(config, model, 3, None))
    if estimator:
        found = build.evaluator(config, model, 0)(params.get("online", params), gather_of(config), 4)
        assert 0 < found["bits_per_dim"] < 40
    again = config_lib.override(config, {"data.dir": str(tmp_path / "out" / "samples.npz"), "data.labels": "none",
                                         "network.num_classes": 0})
    np.testing.assert_array_equal(gather_examples(build.training_images(again), [0, 1, 2])["audio"], clips)


def gather_of(config):
    source = build.training_images(config)
    return lambda indices: gather_examples(source, indices)
