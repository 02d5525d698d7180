"""Programs that write data sets to disk once, in TFDS's layout: `python -m diffusion.data.prepare --help`."""
