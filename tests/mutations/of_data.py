"""Faults in what reads one's own data and fills its gaps."""
from mutations.mutation import Mutation

OWN_DATA = (
    Mutation("parts-in-the-order-of-names", "lost condition", "diffusion/data/folder.py",
             "keys = [hashlib.sha256(name.encode()).digest() for name in names]", "keys = list(names)",
             ("tests/data/test_folder.py",)),
    Mutation("class-by-the-innermost-name", "wrong index", "diffusion/data/metadata.py",
             'values = [name.split("/")[0] for name in names]', 'values = [name.split("/")[-2] for name in names]',
             ("tests/data/test_folder.py",)),
    Mutation("entries-outside-are-read", "lost condition", "diffusion/data/entries.py",
             'name.startswith("/") or ".." in PurePosixPath(name).parts', 'name.startswith("/")',
             ("tests/data/test_folder.py",)),
    Mutation("inner-archive-read-from-the-start", "lost term", "diffusion/data/entries.py",
             "start + member.offset_data", "member.offset_data", ("tests/data/test_folder.py",)),
    Mutation("covered-by-bilinear", "wrong constant", "diffusion/data/crops.py", "Image.Resampling.BICUBIC",
             "Image.Resampling.BILINEAR", ("tests/data/test_crops.py",)),
    Mutation("streamed-examples-in-their-own-order", "wrong index", "diffusion/library/streams.py",
             'return {"raw": self.data[i], "index": i}', 'return {"raw": self.data[i - 1], "index": i}',
             ("tests/library/test_fit.py",)),
    Mutation("gap-without-the-frames-that-begin-before", "off by one", "diffusion/kinds/audio.py",
             "(starts + 2 * self.stft.frequencies > a)", "(starts >= a)", ("tests/test_sound_runs.py",)),
)
