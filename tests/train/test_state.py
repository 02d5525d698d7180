"""The training state: what is in it, and whose parameters a program reads from it."""
import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion.train.averages import Average, Copy
from diffusion.train.state import init_state, weights_of


def make():
    averages = {"ema": Average(rule=Copy(every=1)), "small": Average(rule=Copy(every=1), dtype="bfloat16")}
    return init_state({"online": {"w": jnp.arange(5.0)}}, {"online": optax.adam(1.0)}, averages)


def test_a_preview_or_an_evaluation_copies_no_parameters():
    """The buffers it reads are the state's own."""
    state = make()
    for name, kept in (("raw", state.params["online"]), ("ema", state.averages["ema"])):
        read = weights_of(state, name)["w"]
        assert read is kept["w"] and read.unsafe_buffer_pointer() == kept["w"].unsafe_buffer_pointer()
    assert weights_of(state, "small")["w"].dtype == jnp.float32


def test_averages_start_at_the_parameters_and_share_no_memory_with_them():
    state = make()
    for average in state.averages.values():
        np.testing.assert_array_equal(average["w"].astype(float), state.params["online"]["w"])
        assert average["w"].unsafe_buffer_pointer() != state.params["online"]["w"].unsafe_buffer_pointer()


def test_plain_training_keeps_its_parameters_one_average_two_moments_and_two_numbers():
    state = init_state({"online": {"w": jnp.zeros(100)}}, {"online": optax.adam(1.0)}, {"ema": Average(
        rule=Copy(every=1))})
    assert sum(x.size for x in jax.tree.leaves(state)) == 4 * 100 + 2
