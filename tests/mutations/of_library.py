"""Faults in what trains several sets and in the library without a config: diffusion/train and diffusion/library."""
from mutations.mutation import Mutation

LIBRARY = (
    Mutation("a-training-that-goes-on-reads-the-first-examples", "wrong resume position",
             "diffusion/library/fitting.py", "rows.set_state({\"next_example\": first * batch_size})",
             "rows.set_state({\"next_example\": 0})", ("tests/library/test_fit.py",), "goes_on"),
    Mutation("an-update-every-other-time", "off by one", "diffusion/train/updates.py",
             "step % update.every == 0", "step % update.every != 0", ("tests/train/test_updates.py",),
             "program or dispatch"),
    Mutation("sets-draw-the-same-numbers", "missing key fold", "diffusion/train/step.py",
             "keys(f\"{stream}/{update.trains}\")", "keys(stream)", ("tests/train/test_updates.py",), "streams"),
    Mutation("noise-is-not-permuted", "lost term", "diffusion/train/couplings.py",
             "return x0, noise[rows], cond", "return x0, noise, cond", ("tests/library/test_fit.py",), "transport"),
    Mutation("flow-map-to-the-time-that-it-comes-from", "swapped arguments", "diffusion/core/parameterization.py",
             "process.diffuse(found.x0, r, found.eps)", "process.diffuse(found.x0, t, found.eps)",
             ("tests/library/test_fit.py",), "flow_map"),
    Mutation("a-network-that-changes-itself-passes", "skipped validation", "diffusion/networks/adapters.py",
             "if old is not new]", "if False]", ("tests/library/test_networks.py",), "refused"),
    Mutation("vectors-decay-too", "lost condition", "diffusion/train/optimizer.py",
             "x.ndim >= 2 and not any(", "not any(", ("tests/train/test_optimizer.py",), "adamw or decayed"),
    Mutation("changed-teachers-pass", "skipped validation", "diffusion/io/frozen.py",
             "if found.get(\"sha256\") != digest:", "if False:", ("tests/test_frozen.py",), "changed"),
    Mutation("a-power-average-of-another-width", "wrong constant", "diffusion/train/averages.py",
             "np.roots([1, 7, 16 - precision, 12 - precision])", "np.roots([1, 7, 12 - precision, 16 - precision])",
             ("tests/train/test_averages.py",)),
)
