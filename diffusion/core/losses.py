"""Training losses: loss(keys, denoise, x0, cond) -> (per_example [B], aux). Nothing here reduces over the batch."""
from collections.abc import Callable
from typing import NamedTuple

from diffusion.core import numerics
from diffusion.core.parameterization import Denoise
from diffusion.core.processes import Process
from diffusion.typing import Array, Cond, Image, Keys


class LossAux(NamedTuple):
    """What the log shows of each example."""
    log_snr: Array  # [B], of the time that was drawn


# (keys [B], denoise, x0 [B,H,W,C], cond) -> (per-example loss [B], aux)
Loss = Callable[[Keys, Denoise, Image, Cond], tuple[Array, LossAux]]


def make_denoising_loss(process: Process, draw_time: Callable[[Keys, Process], Array],
                        weighting: Callable[[Array], Array]) -> Loss:
    """E_{t, eps} w(lambda_t) ||eps - eps_hat(x_t, t)||^2 / (H W C), by one draw of t and eps for each example.

    With `weighting=simple` and the eps prediction this is L_simple (Ho et al. 2020, Eq. 14, Algorithm 1). Other
    predictions are compared in eps through the denoiser, so that a weighting means the same for all of them.
    """
    def loss(keys: Keys, denoise: Denoise, x0: Image, cond: Cond) -> tuple[Array, LossAux]:
        t = draw_time(numerics.fold_in(keys, 0), process)
        eps = numerics.normal(numerics.fold_in(keys, 1), x0.shape[1:], x0.dtype)
        prediction = denoise(process.diffuse(x0, t, eps), t, cond)
        log_snr = process.log_snr(t)
        per_example = weighting(log_snr) * numerics.mean_flat((eps - prediction.eps) ** 2)
        return per_example, LossAux(log_snr)
    return loss
