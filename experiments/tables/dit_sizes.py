"""DiT (Peebles & Xie 2023), Table 4: the size of the network and of a patch, without guidance, after 400k steps.

The paper's networks (configs/dit.py) train on the latents of an autoencoder. Here the 12 pairs are smaller, on digits
of 8 x 8 pixels, whose patches of 8 are the whole image.
"""
from experiments.proxies import mini
from experiments.table import Cell, Column, Finding, Row, Table

PATCHES = (8, 4, 2)
FID = {"S": (153.60, 100.41, 68.40), "B": (122.74, 68.38, 43.47), "L": (118.87, 45.64, 23.33),
       "XL": (106.41, 43.01, 19.47)}
SIZES = {"S": (32, 2, 2), "B": (48, 2, 4), "L": (64, 4, 4), "XL": (80, 5, 4)}  # channels, depth, heads

TABLE = Table(
    title="DiT, Table 4: size and patch", source="Peebles & Xie 2023, arXiv 2212.09748, Table 4 (ImageNet 256)",
    columns=[Column("FID", "fd")],
    rows=[Row(f"{size}/{patch}", {"network.channels": channels, "network.depth": depth, "network.heads": heads,
                                  "network.patch": patch}, {"FID": Cell(fid, doubt="recalled")})
          for size, (channels, depth, heads) in SIZES.items() for patch, fid in zip(PATCHES, FID[size])],
    findings=[Finding("smaller patches are better, at every size", "FID", [
                  (f"{size}/{a}", f"{size}/{b}") for size in SIZES for a, b in ((2, 4), (4, 8))]),
              Finding("larger networks are better, at every patch", "FID", [
                  (f"{a}/{patch}", f"{b}/{patch}") for patch in PATCHES
                  for a, b in (("XL", "L"), ("L", "B"), ("B", "S"))])],
    scales={"mini": mini(config="configs/digits_dit.py", about="Networks of 32 to 80 channels and 2 to 5 blocks.")})
