"""Sound files of users: bit depths, channels, rates, and the ways in which they are damaged."""
import io
import wave

import numpy as np
import pytest

from diffusion.errors import CheckpointError, DataError
from diffusion.io import sound

soundfile = pytest.importorskip("soundfile", reason="the extra 'audio' is not installed")
RATE = 8000
PCM = np.random.default_rng(0).integers(-32768, 32768, (1000, 1)).astype(np.int16)
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(4 * RATE) / RATE)).astype(np.float32)[:, None]


def coded(x, rate=RATE, subtype="PCM_16", kind="WAV"):
    out = io.BytesIO()
    soundfile.write(out, x, rate, subtype=subtype, format=kind)
    return out.getvalue()


def decode(content, *, rate=RATE, channels=1, **kwargs):
    return sound.decode(content, "a/b.wav", rate=rate, channels=channels, **kwargs)


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_16_bits_come_back_to_the_bit(kind):
    np.testing.assert_array_equal(sound.to_pcm(decode(coded(PCM, kind=kind))), PCM)


@pytest.mark.parametrize("subtype, error", [("PCM_U8", 1 / 128), ("PCM_24", 1e-4), ("PCM_32", 1e-4), ("FLOAT", 0),
                                            ("DOUBLE", 0), ("ULAW", 0.05)])
def test_other_depths(subtype, error):
    np.testing.assert_allclose(decode(coded(TONE, subtype=subtype)), TONE, atol=error)


@pytest.mark.parametrize("kind, subtype", [("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")])
def test_lossy_files(kind, subtype):
    if kind not in soundfile.available_formats():
        pytest.skip(f"this libsndfile has no {kind}")
    found = decode(coded(TONE, subtype=subtype, kind=kind))
    assert abs(len(found) - len(TONE)) < 3000 and abs(found[9000:20000].std() / TONE.std() - 1) < 0.1


def test_channels_are_mixed_down_or_kept():
    stereo = np.stack([TONE[:, 0], -0.5 * TONE[:, 0]], axis=1)
    np.testing.assert_allclose(decode(coded(stereo, subtype="FLOAT")), TONE / 4, atol=1e-7)
    np.testing.assert_array_equal(decode(coded(stereo, subtype="FLOAT"), channels=2), stereo)
    with pytest.raises(DataError, match="a/b.wav has 1 channel, but config.data.channels = 2. Set .*channels=1"):
        decode(coded(TONE), channels=2)


@pytest.mark.parametrize("rate", [4000, 11025, 16000, 44100, 48000])
def test_a_tone_of_another_rate_keeps_its_pitch_and_length(rate):
    pytest.importorskip("soxr", reason="the extra 'audio' is not installed")
    n = 2 * rate
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(n) / rate))[:, None]
    found = decode(coded(tone, rate, "FLOAT"))
    assert found.shape == (2 * RATE, 1) and found.dtype == np.float32
    np.testing.assert_allclose(found[200:-200], TONE[:2 * RATE][200:-200], atol=2e-3)


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_a_part_is_that_part_of_the_whole(rate):
    pytest.importorskip("soxr", reason="the extra 'audio' is not installed")
    noise = np.random.default_rng(1).normal(size=(3 * rate, 1)) * 0.1
    content, places = coded(noise, rate, "FLOAT"), []
    whole = decode(content)

    def place(spare):
        places.append(spare)
        return rate  # one second
    part = decode(content, length=5000, place=place)
    assert part.shape == (5000, 1) and 0 <= 3 * rate - places[0] - 5000 * rate / RATE < 1
    np.testing.assert_allclose(part, whole[RATE:RATE + 5000], atol=3e-3)
    assert len(decode(content, length=30_000)) == len(whole) == 3 * RATE
    if rate != 22050:  # whose middle part begins between two samples of the whole
        np.testing.assert_allclose(decode(content, length=4000), whole[10_000:14_000], atol=3e-3)


def test_loud_floats_are_cut_off_and_unscaled_ones_refused():
    found = sound.to_pcm(decode(coded(3 * TONE, subtype="FLOAT")))
    assert found.min() == -32768 and found.max() == 32767
    with pytest.raises(DataError, match="a/b.wav has floating-point samples up to 16,3"):
        decode(coded(32768 * TONE, subtype="FLOAT"))


def half(content):
    return content[:len(content) // 2]


def nan():
    x = TONE.copy()
    x[700] = np.nan
    return coded(x, subtype="FLOAT")


@pytest.mark.parametrize("content, message", [
    (b"", "is empty .0 bytes."),
    (b"RIFF....WAVE", "is not a sound file that can be read"),
    (b"no sound at all" * 99, "is not a sound file that can be read"),
    (coded(PCM[:0]), "holds no sound"),
    (half(coded(PCM)), "is incomplete: its header announces 2,000 bytes of sound, but 978 are in the file"),
    (half(coded(PCM, kind="FLAC")), "is (damaged|incomplete)"),
    (coded(PCM)[:30], "is not a sound file that can be read, or is damaged"),
    (nan(), "has samples that are NaN or infinite"),
    (coded(PCM, 3), "claims 3 samples a second"),
])
def test_damaged_files_are_named(content, message):
    with pytest.raises(DataError, match=f"a/b.wav {message}"):
        decode(content)


def test_a_stream_of_unknown_length_is_read_to_its_end():
    content = bytearray(coded(PCM))
    at = content.index(b"data") + 4
    content[at:at + 4] = b"\xff\xff\xff\xff"
    np.testing.assert_array_equal(sound.to_pcm(decode(bytes(content))), PCM)


def test_a_claim_beyond_the_memory_is_refused(monkeypatch):
    from diffusion.io import reading
    monkeypatch.setattr(reading, "memory_limit", lambda: 1000)
    with pytest.raises(DataError, match="The sound of a/b.wav would take"):
        decode(coded(PCM))


def test_wav_files_are_written_whole(tmp_path):
    stereo = np.concatenate([PCM, -(PCM // 2)], axis=1)
    sound.save_wav(tmp_path / "x.wav", stereo, 16000)
    with wave.open(str(tmp_path / "x.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, 16000)
        np.testing.assert_array_equal(np.frombuffer(file.readframes(1000), "<i2").reshape(-1, 2), stereo)
    assert sound.header((tmp_path / "x.wav").read_bytes(), "x") == (16000, 1000, 2)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be written"):
        sound.save_wav(tmp_path / "file" / "x.wav", stereo, 16000)


def test_the_extra_is_named_without_its_libraries(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(DataError, match=r"soxr, which is not installed.*diffusion\[audio\]"):
        decode(coded(TONE, 16000))
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(DataError, match=r"soundfile, which is not installed.*diffusion\[audio\]"):
        decode(coded(TONE))
