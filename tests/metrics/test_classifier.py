"""The extractor `classifier`: its training, its file, and the metrics that need it."""
import dataclasses
import io
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import moving_digits
import numpy as np
import pytest
from metrics.pixels import Pixels

from diffusion import build
from diffusion import config as config_lib
from diffusion.data import sources
from diffusion.data.sources import gather_examples
from diffusion.errors import ConfigError, DataError
from diffusion.kinds.array import ArraySpec
from diffusion.kinds.image import ImageSpec
from diffusion.metrics import extractors, features, fit_classifier, recognition, values
from diffusion.metrics.classifier import Classifier, ClassifierExtractor, open_extractor
from diffusion.metrics.reference import Reference
from diffusion.parallel.sharding import make_mesh
from diffusion.programs import evaluation, train_classifier
from diffusion.programs import metrics as metrics_program

TINY = {"data.name": "digits", "data.size": 8, "data.channels": 1, "network.channels": 8, "network.multipliers": (1,),
        "network.blocks": 1, "network.attention_resolutions": (), "network.groups": 4, "process.steps": 20,
        "network.num_classes": 10, "sample.steps": 2, "sample.preview": 5, "evaluate.images": 40, "evaluate.keep": 2000,
        "evaluate.extractor": "classifier", "evaluate.held_out": "test",
        "evaluate.metrics": ("fd", "is", "nearest", "accuracy", "deviation_within_class")}
DIGITS, UNSEEN = sources.digits("train"), sources.digits("test")
KEEP = dict(keep=2000, mesh=make_mesh(-1, 1))


def config_of(**changes):
    return config_lib.override(config_lib.base(), TINY | {key.replace("__", "."): x for key, x in changes.items()})


@pytest.fixture(scope="module")
def classifier():
    return train_classifier.train(config_of(), steps=200, batch_size=64, seed=0, held_out="test")[0]


@pytest.fixture(scope="module")
def path(classifier, tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier") / "c.npz"
    with open(path, "wb") as file:
        classifier.write(file)
    return path


@pytest.fixture(scope="module")
def extractor(path):
    return open_extractor(str(path))


def of(extractor, images, labels=None):
    found = features.collect(extractor, [images], len(images), **KEEP)
    return dataclasses.replace(found, labels=labels)


@pytest.fixture(scope="module")
def real(extractor):
    return of(extractor, DIGITS.images, DIGITS.labels)


def test_it_learns_the_digits(classifier):
    assert classifier.accuracy >= 0.95 and classifier.held_out == "test"
    assert classifier.classes == 10 and classifier.shape == (8, 8, 1) and classifier.trained["steps"] == 200


def test_the_file_is_the_same_for_the_same_classifier_and_is_read_whole(classifier, path):
    again = io.BytesIO()
    classifier.write(again)
    assert again.getvalue() == path.read_bytes()
    found = Classifier.read(path)
    assert found.digest == classifier.digest and found.accuracy == classifier.accuracy
    jax.tree.map(np.testing.assert_array_equal, found.params, classifier.params)


def test_files_of_something_else_are_refused(path, tmp_path):
    arrays = dict(np.load(path))
    name = next(name for name in arrays if name.endswith("kernel"))
    changed = {"moved": {name: arrays[name] + 1}, "cut": {name: arrays[name][..., :1]}, "nan": {"about": np.array("{")},
               "wide": {"about": np.array(str(arrays["about"]).replace('"classes": 10', '"classes": 11'))},
               "pickled": {name: np.array([{}])}}
    for what, change in changed.items():
        np.savez(tmp_path / f"{what}.npz", **arrays | change)
    np.savez(tmp_path / "other.npz", arr_0=DIGITS.images[:2])
    (tmp_path / "half.npz").write_bytes(path.read_bytes()[:2000])
    for what, error, words in (
            ("none", ConfigError, "no classifier in .*none.npz. Train one: python -m diffusion.metrics.train_cl"),
            ("other", DataError, "other.npz is not a classifier: it holds arr_0"),
            ("moved", DataError, "moved.npz is not a whole classifier: its weights do not have the digest"),
            ("cut", DataError, "is not a whole classifier: its parameter"),
            ("wide", DataError, "is not a whole classifier: its parameter"),
            ("nan", DataError, "is not a whole classifier"), ("pickled", DataError, "as a pickle"),
            ("half", DataError, "half.npz cannot be read as an npz")):
        with pytest.raises(error, match=words):
            extractors.load("classifier", str(tmp_path / f"{what}.npz"))
    with pytest.raises(ConfigError, match="classifier needs its file"):
        extractors.load("classifier")
    with pytest.raises(ConfigError, match="resizes none: leave 'clean' out"):
        extractors.load("classifier", str(path), mode="clean")
    with pytest.raises(DataError, match="pictures of data.kind = 'image', 8x8x1 .*, but here they are 1 of 9"):
        of(open_extractor(str(path)), np.zeros((20, 9, 8, 1), np.uint8))


def test_real_images_are_recognised_and_vary_as_much_as_others(extractor, real):
    """Also copies of one image for each class, which do not vary at all."""
    half, other = (of(extractor, DIGITS.images[i::2], DIGITS.labels[i::2]) for i in (0, 1))
    unseen = Reference.from_features(of(extractor, UNSEEN.images, UNSEEN.labels))
    names = ["accuracy", "deviation_within_class", "nearest", "fd"]
    found = values.metric_values(names, extractor.called, half, Reference.from_features(other), unseen)
    assert found["nearest_classifier"].value == pytest.approx(found["nearest_classifier"].held_out, rel=0.2)
    assert 0 < found["fd_classifier"].value < found["fd_classifier"].held_out + 0.5
    assert found["accuracy_classifier"].value > 0.99 and found["accuracy_classifier"].held_out >= 0.95
    assert found["deviation_within_class_classifier"].value == pytest.approx(1, abs=0.15)  # the classifier knows them
    assert found["deviation_within_class_classifier"].held_out == 1
    found |= values.metric_values(names, extractor.called, half, Reference.from_features(other))
    assert found["deviation_within_class_classifier"].value == pytest.approx(1, abs=0.05)

    first = [int(np.argmax(DIGITS.labels == c)) for c in range(10)] * 4
    copies = of(extractor, DIGITS.images[first], DIGITS.labels[first])
    found = values.metric_values(names, extractor.called, copies, Reference.from_features(real), unseen)
    assert found["deviation_within_class_classifier"].value < 1e-3 and found["nearest_classifier"].value < 1e-3
    assert found["nearest_classifier"].held_out > 0.3  # real ones are no copies
    wrong = values.metric_values(["accuracy"], extractor.called, dataclasses.replace(
        copies, labels=(copies.labels + 1) % 10), Reference.from_features(real))
    assert wrong["accuracy_classifier"].value == 0


def test_an_evaluation_says_what_real_images_give(path, classifier, tmp_path, capsys):
    config = config_of(evaluate__weights=str(path))
    model = build.model(config)
    made = evaluation.prepare(config, model, evaluation.load_extractor(config), tmp_path / "features")
    params = jax.tree.map(lambda x: np.full(x.shape, 0.01, x.dtype), model.abstract_params)
    found, first = made(params, 0, {"sampler": {}, "checkpoint": 3})
    assert found["protocol"]["weights_sha256"] == classifier.digest and found["protocol"]["extractor"] == "classifier"
    rows = found["metrics"]
    assert set(rows) == {f"{name}_classifier" for name in ("fd", "score", "nearest", "accuracy",
                                                           "deviation_within_class")}
    assert rows["accuracy_classifier"]["value"] < 0.5 and rows["accuracy_classifier"]["held_out"] >= 0.95
    assert rows["score_classifier"]["held_out"] > 5
    assert rows["fd_classifier"]["held_out"] < rows["fd_classifier"]["value"]
    evaluation.write(tmp_path / "out", found, first, model.spec, made.titles)
    printed = capsys.readouterr().out
    assert "(real held-out: " in printed and list((tmp_path / "out").glob("step_00000003_classifier_*.png"))
    again = evaluation.prepare(config, model, evaluation.load_extractor(config), tmp_path / "features")
    assert "features of" not in capsys.readouterr().out  # they were kept, with their labels and classes
    assert again(params, 0, {"sampler": {}, "checkpoint": 3})[0]["metrics"] == rows


def test_kept_examples_that_lack_classes_are_noted(capsys):
    evaluation.note_classes(np.arange(40) // 4, 37, "image")
    evaluation.note_classes(np.arange(40) // 4, 12, "clip")
    assert capsys.readouterr().out.startswith("note: the first 12 of 40 clips, which config.evaluate.keep keeps, are ")


def test_what_a_model_cannot_be_asked(path):
    def load(**changes):
        return evaluation.load_extractor(config_of(evaluate__weights=str(path), **changes))

    with pytest.raises(ConfigError, match="'accuracy' needs samples of asked labels: a model with classes"):
        load(network__num_classes=0)
    assert load(network__num_classes=0, evaluate__metrics=("fd", "deviation_within_class", "nearest")).number == 1
    with pytest.raises(ConfigError, match="'identity' needs examples of several pictures: videos"):
        load(evaluate__metrics=("identity",))
    with pytest.raises(ConfigError, match="8x8x1 .*, but this model's are of 'image', 8x16x1"):
        load(data__size=(8, 16))
    with pytest.raises(ConfigError, match="knows 10 classes, but this model has 11"):
        load(network__num_classes=11)
    with pytest.raises(ConfigError, match="no metric 'centroid_law'. Choose of: fd, .*identity"):
        load(evaluate__metrics=("centroid_law",))
    with pytest.raises(ConfigError, match="takes data.kind = 'image' or 'audio' or 'video', but this model's is 'arr"):
        build.extractor(config_lib.override(config_lib.base(kind="array", data="mixture", network="mlp"), {
            "evaluate.extractor": "classifier"}))
    with pytest.raises(ConfigError, match="The metric 'accuracy' needs the extractor classifier"):
        values.check_possible(values.lacking(["accuracy"], ["pool"], spatial=False, kept=True, held_out=True))


def test_two_sets_of_images_by_the_command(path, tmp_path, monkeypatch, capsys):
    for name, images in (("a", DIGITS.images[:60]), ("b", DIGITS.images[60:130]), ("c", UNSEEN.images[:60])):
        np.savez(tmp_path / f"{name}.npz", arr_0=images)
    metrics_program.main(metrics_program.parser().parse_args([
        str(tmp_path / "a.npz"), str(tmp_path / "b.npz"), f"--held_out={tmp_path}/c.npz", "--extractor=classifier",
        f"--weights={path}", "--metrics=fd,nearest,deviation_within_class,memorisation", f"--json={tmp_path}/r.json"]))
    rows = json.loads((tmp_path / "r.json").read_text())["metrics"]
    assert {"fd_classifier", "nearest_classifier", "closer_to_train"} <= set(rows)
    assert capsys.readouterr().out.count("(real held-out: ") == 3 and "held_out" not in rows["closer_to_train"]


def test_a_kind_or_a_source_brings_its_own_metrics(tmp_path, monkeypatch):
    """Functions of finished values; the figure of held-out examples is the mean over them."""
    monkeypatch.setattr(ImageSpec, "measures", {"brightness": lambda x: x.mean((1, 2, 3))}, raising=False)
    monkeypatch.setattr(sources.ArraySource, "measures", {"corner": lambda x: x[:, 0, 0, 0] > 0}, raising=False)
    config = config_of(evaluate__metrics=("brightness", "corner"))
    model = build.model(config)
    made = evaluation.prepare(config, model, Pixels(), tmp_path)
    params = jax.tree.map(lambda x: np.full(x.shape, 0.01, x.dtype), model.abstract_params)
    found, _ = made(params, 0, {})
    rows = found["metrics"]
    assert rows["brightness"]["held_out"] == pytest.approx(UNSEEN.images.mean())
    assert rows["corner"]["held_out"] == pytest.approx((UNSEEN.images[:, 0, 0] > 0).mean())
    assert 0 < rows["brightness"]["value"] < 255 and rows["brightness"]["error"] > 0
    assert evaluation.measures_of(config_of()) == {}


def test_arrays_are_evaluated_by_an_extractor_of_theirs(tmp_path):
    """In their own units, as floats."""
    class Numbers:
        name, weights, resize, kind = "numbers", "none", "none", SimpleNamespace(limits={"pool": 64.0})
        params, example = 0.0, jax.ShapeDtypeStruct((1, 2), np.float32)
        inputs = staticmethod(lambda x: x)

        def called(self, metric):
            return f"{metric}_numbers"

        def features(self, params, x):
            return {"pool": x + params}

    config = config_lib.override(config_lib.base(kind="array", data="mixture", network="mlp"), {
        "network.channels": 16, "network.depth": 1, "sample.steps": 2, "data.points": 200, "data.shape": (2,),
        "process.steps": 20, "evaluate.images": 40, "evaluate.metrics": ("fd", "nearest")})
    config = build.measured(config)
    model = build.model(config)
    made = evaluation.prepare(config, model, Numbers(), tmp_path)
    params = jax.tree.map(lambda x: np.full(x.shape, 0.01, x.dtype), model.abstract_params)
    found, first = made(params, 0, {})
    assert found["protocol"]["rounding"] == ArraySpec.rounding and first.dtype == np.float32
    x = build.source(config).gather(np.arange(200))["x"]
    np.testing.assert_allclose(made.reference.statistics.mean, x.mean(0), atol=1e-4)
    assert set(found["metrics"]) == {"fd_numbers", "nearest_numbers"}


@pytest.mark.slow
def test_clips_of_sound_are_classified_by_their_spectrograms(tmp_path):
    """Tones of two pitches. The model's clips are evaluated beside held-out tones."""
    rng, count, at = np.random.default_rng(0), 120, np.arange(512) / 8000
    labels = np.arange(count, dtype=np.int32) % 2
    pitch = np.where(labels, 2000, 500) * rng.uniform(0.9, 1.1, count)
    tones = 0.5 * np.sin(2 * np.pi * pitch[:, None] * at + rng.uniform(0, 6, (count, 1)))
    np.savez(tmp_path / "tones.npz", audio=np.rint(32767 * tones).astype(np.int16)[..., None], label=labels)
    config = config_lib.override(config_lib.base(data="folder", kind="audio", network="mlp"), {
        "data.dir": str(tmp_path / "tones.npz"), "data.length": 512, "data.rate": 8000, "data.split": "train[:60%]",
        "network.num_classes": 2, "network.channels": 8, "network.depth": 1, "process.steps": 20, "sample.steps": 2,
        "evaluate.images": 40, "evaluate.metrics": ("fd", "accuracy", "nearest"), "evaluate.held_out": "train[60%:]",
        "evaluate.extractor": "classifier", "evaluate.weights": str(tmp_path / "c.npz"), "sample.preview": 3})
    made, unseen = train_classifier.train(config, steps=25, batch_size=16, seed=0, held_out="train[60%:]")
    assert made.kind == "audio" and made.shape == (64, 7, 1) and 30 < unseen < 66 and made.accuracy == 1
    assert made.trained["shift"] == [0.03, 0.1]
    with open(tmp_path / "c.npz", "wb") as file:
        made.write(file)
    model = build.model(config)
    measured = evaluation.prepare(config, model, evaluation.load_extractor(config), tmp_path)
    params = jax.tree.map(lambda x: np.full(x.shape, 0.01, x.dtype), model.abstract_params)
    found, first = measured(params, 0, {})
    assert found["metrics"]["accuracy_classifier"]["held_out"] == 1 and first.dtype == np.int16
    assert found["protocol"]["reference"]["shape"] == [512, 1] and found["protocol"]["rounding"].startswith("int16")


def test_clips_are_judged_by_their_frames_and_by_the_law_of_their_source(classifier, tmp_path):
    """By a classifier that was not trained on them: what is tested are the ways of the figures."""
    known = dataclasses.replace(classifier, kind="video")
    with open(tmp_path / "c.npz", "wb") as file:
        known.write(file)
    config = config_lib.override(config_lib.base(data="moving_mnist", kind="video", network="mlp"), {
        "data.dir": moving_digits.write_idx(tmp_path / "idx"), "data.size": 8, "data.digit": 4, "data.digits": 1,
        "data.frames": 3, "data.channels": 1, "data.clips": 40, "network.channels": 8, "network.depth": 1,
        "process.steps": 20, "sample.steps": 2, "sample.preview": 2, "evaluate.images": 40,
        "evaluate.extractor": "classifier", "evaluate.held_out": "test", "evaluate.weights": str(tmp_path / "c.npz"),
        "evaluate.metrics": ("fd", "identity", "centroid_law")})
    model = build.model(config)
    made = evaluation.prepare(config, model, evaluation.load_extractor(config), tmp_path)
    params = jax.tree.map(lambda x: np.full(x.shape, 0.01, x.dtype), model.abstract_params)
    found, first = made(params, 0, {})
    assert first.shape == (2, 3, 8, 8, 1) and made.reference.kept.shape == (40, 128)
    assert found["metrics"]["centroid_law"]["held_out"] == 1 and "value" in found["metrics"]["centroid_law"]
    real = features.collect(made.extractor, [gather_examples(build.source(config), range(40))["video"]], 40, **KEEP)
    assert real.recognised.shape == (40, 3) and "identity_classifier" in found["metrics"]


def test_the_classes_of_several_pictures():
    """A clip's class is that of most frames; its identity holds in all of them."""
    seen = np.array([[3, 3, 3], [3, 1, 3], [2, 1, 0], [5, 5, 5]], np.int32)
    assert recognition.majority(seen).tolist() == [3, 3, 0, 5]
    assert recognition.accuracy(seen, np.array([3, 3, 1, 4])) == 0.5
    assert recognition.identity(seen) == 0.5 and recognition.identity(seen, np.array([3, 3, 0, 4])) == 0.25
    with pytest.raises(DataError, match="do not vary within a class"):
        recognition.deviation_ratio(np.zeros((2, 3)), seen[:2], np.zeros((3, 3)), seen[1:])
    x = np.array([[0.0, 0], [3, 4], [7, 7]])  # of class 1 two examples, 5 apart
    assert recognition.deviation_within_class(x, np.array([1, 1, 2]), [1]) == pytest.approx(5 / np.sqrt(2))
    assert recognition.deviation_within_class(x, np.array([1, 1, 2]), [1, 2]) == pytest.approx(2.5 / np.sqrt(2))


def test_the_features_of_a_clip_know_the_order_of_its_frames(classifier):
    clips = DIGITS.images[:24].reshape(4, 6, 8, 8, 1)
    extractor = ClassifierExtractor(classifier=classifier, weights="", params=classifier.params, number=6,
                                    pictures=lambda x: x)
    same = extractor.inputs(np.repeat(clips[:, :1], 6, 1))
    found, shuffled, still = (jax.jit(extractor.features)(classifier.params, x) for x in (clips, clips[:, ::2], same))
    order = jax.jit(extractor.features)(classifier.params, clips[:, [0, 3, 1, 4, 2, 5]])
    assert found["pool"].shape == (4, extractor.dimension) == (4, 128) and shuffled["recognised"].shape == (4, 3)
    np.testing.assert_allclose(found["pool"][:, :64], order["pool"][:, :64], atol=1e-5)
    assert np.abs(found["pool"][:, 64:] - order["pool"][:, 64:]).max() > 0.1
    assert np.abs(still["pool"][:, 64:]).max() < 1e-3
    np.testing.assert_allclose(np.exp(found["logits"]).sum(1), 1, rtol=1e-5)  # a mean of probabilities
    assert np.array_equal(recognition.majority(np.asarray(still["recognised"])), np.asarray(still["logits"]).argmax(1))


def test_training_is_a_function_of_its_seed():
    def trained(seed):
        batches = iter([(DIGITS.images[i:i + 16], DIGITS.labels[i:i + 16]) for i in (0, 16, 32)])
        return fit_classifier.fit(batches, 3, kind="image", classes=10, seed=seed, shift=(1, 1)).digest

    assert trained(0) == trained(0) != trained(1)
    with pytest.raises(DataError, match="A label is 9, but the data's classes are 0 .. 8"):
        fit_classifier.fit(iter([(DIGITS.images[:16], DIGITS.labels[:16])]), 1, kind="image", classes=9, seed=0)


def test_of_several_pictures_one_is_drawn_for_each_example_and_step():
    """Also where a kind draws parts of files, but the data are arrays."""
    spec = SimpleNamespace(draws=True, field="image", pictures=lambda x: np.stack([x, x, x], 1) // 2 + np.arange(
        0, 384, 128, dtype=np.uint8).reshape(1, 3, 1, 1, 1))
    batches = train_classifier.training_batches(spec, DIGITS, batch_size=40, seed=0, workers=0)
    found = [next(batches)[0][:, 0, 0, 0] // 128 for _ in range(2)]
    batches.close()
    assert [len(np.unique(one)) for one in found] == [2, 2] and not np.array_equal(*found)


def test_shifts_move_whole_pictures_by_at_most_so_much():
    x = jnp.asarray(np.arange(1, 65, dtype=np.float32).reshape(1, 8, 8, 1).repeat(200, 0))
    found = np.asarray(fit_classifier.shifted(jax.random.split(jax.random.key(0), 200), x, (1, 2)))
    moved = {tuple(np.argwhere(one[..., 0] == 28)[0] - [3, 3]) for one in found}
    assert moved == {(i, j) for i in (-1, 0, 1) for j in (-2, -1, 0, 1, 2)}


def test_mistakes_come_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_classifier, "fit", lambda *args, **how: pytest.fail("trained"))
    for flags, words in (
            ([f"--out={tmp_path}/c.txt"], "must end in .npz"),
            ([f"--out={tmp_path}/c.npz", "--steps=1"], "--steps=1 is too small"),
            ([f"--out={tmp_path}/c.npz", "--held_out=validation"], "no split 'validation'"),
            ([f"--out={tmp_path}/c.npz", "--shift=0.9,0"], "--shift=0.9,0: give two shares"),
            ([f"--out={tmp_path}/c.npz", "--config.data.size=9"], "8x8x1 .*, but the config asks for 9x9x1"),
            ([f"--out={tmp_path}/c.npz", "--config.data.sise=9"], "Unknown config key")):
        with pytest.raises((ConfigError, DataError), match=words):
            train_classifier.main(["--config=configs/digits.py", *flags])
    one = sources.ArraySource(DIGITS.images, np.zeros_like(DIGITS.labels))
    monkeypatch.setattr(build, "training_images", lambda *args, **how: one)
    with pytest.raises(DataError, match="have one class: there is nothing to tell apart"):
        train_classifier.train(config_of(), steps=9, batch_size=8, seed=0, held_out="test")
    with pytest.raises(ConfigError, match="'array' has no pictures to classify"):
        train_classifier.train(config_lib.override(config_lib.base(kind="array", data="mixture", network="mlp"), {
            "data.shape": (2,)}), steps=9, batch_size=8, seed=0, held_out="test")
