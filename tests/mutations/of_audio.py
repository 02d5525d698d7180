"""Faults in what reads, transforms and writes sound."""
from mutations.mutation import Mutation

AUDIO = (
    Mutation("half-a-wav-is-a-short-one", "skipped validation", "diffusion/io/sound.py",
             "if there < size and size < 0x7FFFFFFF - 4096:", "if False:", ("tests/io/test_sound.py",), "damaged"),
    Mutation("a-part-keeps-the-samples-before-it", "lost term", "diffusion/io/sound.py",
             "x = x[before // down * up:]", "x = x[0:]", ("tests/io/test_sound.py",), "part"),
    Mutation("windows-of-the-wrong-slope", "wrong formula", "diffusion/kinds/stft.py",
             "np.pi / 2 * (np.arange(slope) + 0.5) / slope", "np.pi / 2 * np.arange(slope) / slope",
             ("tests/kinds/test_stft.py",)),
    Mutation("ends-without-their-window", "lost edge", "diffusion/kinds/stft.py",
             "found[0, :slope] = np.arange(slope) >= slope // 2", "found[0, :slope] = rising",
             ("tests/kinds/test_stft.py",), "squares"),
    Mutation("levels-of-sound-miss-the-bound", "off by one", "diffusion/kinds/audio.py",
             "(2.0 * pcm.astype(jnp.float32) + 1.0) / 65535.0", "(2.0 * pcm.astype(jnp.float32)) / 65536.0",
             ("tests/kinds/test_audio.py",), "levels"),
    Mutation("parts-are-drawn-where-nothing-trains", "lost condition", "diffusion/kinds/audio.py",
             "if self.draws and rng is not None else spare // 2", "if rng is not None else spare // 2",
             ("tests/kinds/test_audio.py",), "shorter"),
    Mutation("bits-of-sound-by-the-levels-of-a-byte", "lost argument", "diffusion/likelihood/ode.py",
             "functools.partial(dequantizer, levels=levels)", "dequantizer", ("tests/likelihood/test_agreement.py",),
             "65536"),
    Mutation("levels-beyond-the-bounds-count", "lost condition", "diffusion/core/variational.py",
             "(own + k >= 0) & (own + k <= levels - 1)", "own + k >= 0", ("tests/likelihood/test_vlb.py",),
             "thousands"),
    Mutation("bands-without-area", "lost factor", "diffusion/kinds/mel.py",
             "(triangles * 2 / (right - left))", "(triangles * 1.0)", ("tests/kinds/test_mel.py",), "triangle"),
)
