"""What a config does by ``default_scope`` and ``custom_imports``, for code without a Runner."""

import mmengine.registry


def register_all_modules(init_default_scope: bool = True) -> None:
    """Register all parts of this package, so that configs of it can be built.

    A Runner needs it not: its config says what to import, and in which scope names are looked up.

    Args:
        init_default_scope: look names without a scope up in ``eiclip_mm`` from now on; mmengine
            logs a warning where another scope was the default.
    """
    import eiclip_mm.datasets
    import eiclip_mm.engine
    import eiclip_mm.evaluation
    import eiclip_mm.models
    import eiclip_mm.visualization  # noqa: F401

    if init_default_scope:
        mmengine.registry.init_default_scope('eiclip_mm')
