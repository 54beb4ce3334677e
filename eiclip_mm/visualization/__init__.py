"""Visualizers of mmpretrain and mmengine, under this package's scope."""

import mmpretrain.visualization  # noqa: F401  (fills the parent registries; a child does not)
