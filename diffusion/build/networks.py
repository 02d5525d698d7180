"""Builds the network of config.network."""
from ml_collections import ConfigDict

from diffusion.build.rules import require_key
from diffusion.core.processes import Process
from diffusion.families import BY_NAME, naming_keys


def network(c: ConfigDict, size: int | tuple[int, ...], out_channels: int, past: tuple[int, ...] = (),
            augment: int = 0):
    """The network for arrays of this shape without the channels, such as (height, width); a number is the side of a
    square. past: the shape of the frames before a clip that it is told; () for none. augment: the numbers of its
    augmentation label. Raises ConfigError for impossible keys."""
    size = (size, size) if isinstance(size, int) else tuple(size)
    require_key(c.num_classes >= 0, "network.num_classes", c.num_classes, "is 0 (unconditional), the number of labels, "
                "or -1, which programs replace by the number of the data's classes.")
    require_key(0 <= c.label_dropout < 1, "network.label_dropout", c.label_dropout, "is a probability below 1 (Ho & "
                "Salimans 2022: 0.1).")
    require_key(c.num_classes > 0 or not c.label_dropout, "network.label_dropout", c.label_dropout, "hides labels, but "
                "the network has none: set network.num_classes.")
    given = BY_NAME["network"].member(c.name).given
    require_key(not past or "past" in given, "network.name", c.name, "takes no frames before a clip (data.past): use "
                "unet_frames or video_unet.")
    require_key(not augment or "augment" in given, "network.name", c.name, "is not told how images are augmented "
                "(data.augment), so that its samples would be augmented ones: use song_unet, or data.augment=0.")
    found = BY_NAME["network"].make(c, num_classes=c.num_classes + (c.label_dropout > 0), out_channels=out_channels,
                                    past=past, augment=augment)
    spatial = getattr(found, "spatial", None)
    require_key(spatial in (None, len(size)), "network.name", c.name, f"takes arrays of {axes(spatial)} and channels, "
                f"but the data have {axes(len(size))} and channels, as these networks take: "
                f"{', '.join(taking(len(size)))}.")
    if hasattr(found, "check"):
        with naming_keys("network."):
            found.check(size)
    return found


def axes(number: int | None) -> str:
    return f"{number} ax{'i' if number == 1 else 'e'}s"


def taking(spatial: int) -> list[str]:
    """The networks for arrays with so many axes before the channels."""
    return [name for name, member in BY_NAME["network"].members().items()
            if getattr(member.make, "spatial", None) in (None, spatial)]


def check_times(net, process: Process, *, between_times: bool) -> None:
    """Checks that the network accepts the times of the process, before training and sampling."""
    if hasattr(net, "check_times"):
        with naming_keys("network."):
            net.check_times(whole=process.discrete and process.c_noise_scale == 1 and not between_times,
                            largest=process.t_max - 1, positive=process.c_noise_is_level)
