"""Config files in either of mmengine's styles."""

from pathlib import Path

from mmengine.config import Config


def load_config(path: str | Path) -> Config:
    """A config file as plain data: a class that stands in it becomes its import path.

    That is what a run dumps of a pure-Python config, and what its checkpoints hold; mmengine's own
    ``Config.fromfile`` gives the classes themselves.

    Args:
        path: a file, or ``eiclip_mm::NAME.py`` for a config of this package.

    Raises:
        FileNotFoundError: there is none.
    """
    if not str(path).startswith('eiclip_mm::') and not Path(path).is_file():
        raise FileNotFoundError(
            f'config {path} does not exist; name a file of configs/ or your own, or '
            'eiclip_mm::NAME.py, such as eiclip_mm::eiclip_fashiongen.py'
        )
    config = Config.fromfile(path)
    return Config(config.to_dict(), filename=config.filename)
