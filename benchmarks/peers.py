"""Training steps in PyTorch of the networks that diffusers has too, to be timed beside ours.

What each side does in a step: scaling of uint8 images, noising by a linear table of 1,000 betas, the squared error in
eps, its gradient, clipping by the global norm at 1, Adam, and the average of the weights with decay 0.9999. PyTorch
uses its fused Adam and multi-tensor ("foreach") clipping and averaging, channels_last and, in bfloat16, autocast with
float32 weights, as ours has. Ours also draws a key for each example and step (every draw is reproducible), looks the
images up in the data set on the device, and sums losses by noise level.
"""
import sys
from collections.abc import Callable
from typing import Any

from diffusion.interop import unet2d

# torchvision that does not fit the installed torch would prevent the import of diffusers, which does not need it.
if "torchvision" not in sys.modules:
    try:
        import torchvision  # noqa: F401
    except Exception:  # of any kind, from its C++ extension
        sys.modules["torchvision"] = None


def network_of(config: Any):
    """The same network in PyTorch, and the number of its classes. Raises ValueError for one that diffusers lacks."""
    import diffusers
    c, size, channels = config.network, config.data.size, config.data.channels
    if c.name == "unet":
        settings = unet2d.write_settings(c.to_dict(), size=size, channels=channels, learned_range=config.learned_range)
        known = {k: v for k, v in settings.items() if not k.startswith("_")}
        return diffusers.UNet2DModel(**known), c.num_classes
    if c.name == "dit":
        # Its blocks embed time and label each for itself: 750M parameters instead of DiT-XL/2's 675M.
        return diffusers.DiTTransformer2DModel(
            num_attention_heads=c.heads, attention_head_dim=c.channels // c.heads, in_channels=channels,
            out_channels=channels * (1 + config.learned_range), num_layers=c.depth, sample_size=size,
            patch_size=c.patch, num_embeds_ada_norm=max(c.num_classes, 1), norm_elementwise_affine=False, norm_eps=1e-6,
            activation_fn="gelu-approximate", attention_bias=True), max(c.num_classes, 1)
    raise ValueError(f"network.name = {c.name!r} has no peer in diffusers here; unet and dit have.")


def training_step(config: Any, *, batch: int, dtype: str, compiled: bool) -> Callable[[], Any]:
    """A function that does one training step and returns its loss, on the GPU if PyTorch sees one."""
    import torch
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    net, classes = network_of(config)
    net = net.to(device, memory_format=torch.channels_last).train()
    weights = list(net.parameters())
    average = [w.detach().clone() for w in weights]
    optimizer = torch.optim.Adam(weights, 2e-4, fused=True)
    size, channels = config.data.size, config.data.channels
    images = torch.randint(0, 256, (batch, channels, size, size), device=device, dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, classes, (batch,), device=device) if classes else None
    kept = torch.linspace(1e-4, 0.02, 1000, device=device, dtype=torch.float64).neg().add(1).cumprod(0).float()
    transformer = config.network.name == "dit"

    def loss_of(x0: Any) -> Any:
        t = torch.randint(0, 1000, (batch,), device=device)
        noise, share = torch.randn_like(x0), kept[t][:, None, None, None]
        x = share.sqrt() * x0 + (1 - share).sqrt() * noise
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            out = net(x, timestep=t, class_labels=labels).sample if transformer else net(x, t, labels).sample
        return ((out[:, :channels].float() - noise)**2).mean()

    loss_of = torch.compile(loss_of, dynamic=False) if compiled else loss_of

    def step() -> Any:
        loss = loss_of(images.float() / 127.5 - 1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0, foreach=True)
        optimizer.step()
        torch._foreach_lerp_(average, [w.detach() for w in weights], 1e-4)
        return loss.detach()

    return step
