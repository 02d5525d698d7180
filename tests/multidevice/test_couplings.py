"""Optimal transport pairs the whole global batch, however many devices share it."""
import json
import sys

import program
import pytest

RUN = """
import json, jax, jax.numpy as jnp, numpy as np, optax, diffusion
init = lambda key: {"w": 0.1 * jax.random.normal(key, (3, 3)), "b": jnp.zeros(3)}
model = diffusion.Model(network=(init, lambda params, x, c_noise: x @ params["w"] + params["b"][None]), shape=(3,),
                        process="flow", prediction="velocity")
rows = []
for coupling in ("minibatch_ot", "independent"):
    diffusion.fit(model, diffusion.objective(model, coupling=coupling), steps=3, batch_size=16, accumulate=2,
                  data=np.random.default_rng(0).standard_normal((40, 3)), optimizer=optax.adam(1e-2),
                  report=lambda step, row: rows.append(row["loss"]))
print(json.dumps([jax.device_count(), rows]))
"""


@pytest.mark.multidevice
@pytest.mark.slow
def test_minibatch_optimal_transport_is_the_same_on_any_number_of_devices():
    (one, alone), (eight, shared) = (json.loads(program.execute([sys.executable, "-c", RUN], n).stdout) for n in (1, 8))
    assert (one, eight) == (1, 8) and shared == pytest.approx(alone, rel=1e-5)
    assert max(alone[:3]) < min(alone[3:])  # paired noise is nearer, and the velocities smaller
