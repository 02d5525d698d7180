"""The frozen parameter sets of a training: read from their source at its start, and from the run folder afterwards."""
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

if TYPE_CHECKING:
    from diffusion import build
    from diffusion.pretrained import Pretrained


@dataclasses.dataclass(frozen=True)
class Frozen:
    """The sets by name: the config of each one's model, and where to read it. begun: the run has made steps, so that
    they are read from its folder."""
    configs: dict[str, ConfigDict]
    sources: "dict[str, Pretrained]"
    folder: Path
    begun: bool

    def read(self, model: "build.Model") -> dict[str, Any]:
        """The parameters by set, of the sources or of the run folder."""
        from diffusion.io import frozen
        return {name: frozen.restore(self.folder / name, one.abstract_params) if self.begun else
                self.sources[name].params(one.abstract_params) for name, one in model.frozen.items()}

    def store(self, params: dict[str, Any]) -> None:
        """Stores those from a source in the run folder, which must be open."""
        from diffusion.io import frozen
        for name, source in self.sources.items():
            frozen.save(self.folder / name, params[name], source.config.to_dict(), source.where)


def open_frozen(config: ConfigDict, workdir: Path | None) -> Frozen:
    """The frozen sets of `config`. workdir: the run folder, if there may be one. Raises CheckpointError or ConfigError
    if one is missing, of another network or changed since the run began."""
    from diffusion import config as config_lib
    from diffusion import pretrained
    from diffusion.io import frozen
    from diffusion.io.checkpoint import Checkpoints
    folder = Path(workdir or ".") / "frozen"
    begun = workdir is not None and bool(Checkpoints(Path(workdir) / "checkpoints", keep=None).steps())
    named = {"teacher": config.teacher.source} if config.teacher.source else {}
    if begun:
        found = {name: config_lib.adopted(frozen.read_settings(folder / name), str(folder / name / "config.json"))
                 for name in named}
        return Frozen(found, {}, folder, begun)
    sources = {name: pretrained.load_source(source) for name, source in named.items()}
    return Frozen({name: source.config for name, source in sources.items()}, sources, folder, begun)
