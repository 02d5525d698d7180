"""DiffusionPipeline on 1 device and on 8: the same images, also where the batch is no multiple of the devices."""
import sys

import numpy as np
import pytest
from program import ROOT, execute

pytestmark = pytest.mark.multidevice

SCRIPT = f"""
import sys
sys.path[:0] = ["{ROOT}/tests", "{ROOT}/tests/networks"]
import numpy as np
from test_pipeline import draw, pipeline
pipe = pipeline(network__num_classes=4)
noise = np.random.default_rng(0).standard_normal((3, 8, 8, 3))
np.savez(sys.argv[1], seed=draw(pipe, 3, 5),
         guided=draw(pipe, 3, 5, sampler="ddim", initial_noise=noise, class_labels=[1, 2, 3], guidance_scale=2.0,
                     unconditional_label=0))
"""


@pytest.mark.slow
def test_images_do_not_depend_on_the_number_of_devices(tmp_path):
    found = []
    for devices in (1, 8):
        execute([sys.executable, "-c", SCRIPT, str(tmp_path / f"{devices}.npz")], devices=devices)
        with np.load(tmp_path / f"{devices}.npz") as file:
            found.append(dict(file))
    for name, one in found[0].items():
        # Batches of other shapes round in another order.
        np.testing.assert_allclose(found[1][name], one, rtol=0, atol=1e-5)
        assert one.std() > 0.05
