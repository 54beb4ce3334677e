"""EI-CLIP, entity-aware image-text retrieval for fashion, as a plugin of mmpretrain.

Importing the package checks its dependencies and mends what upstream releases broke
(:mod:`eiclip_mm._compat`). It registers and builds nothing.
"""

from eiclip_mm._compat import prepare
from eiclip_mm.version import __version__, version_info

__all__ = ['__version__', 'version_info']

prepare()
