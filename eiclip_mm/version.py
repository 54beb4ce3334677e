"""The package's version; setup.py reads it without importing the package."""

__version__ = '0.1.0'


def parse_version_info(version: str) -> tuple[int | str, ...]:
    """A version string as a tuple.

    >>> parse_version_info('1.3.0')
    (1, 3, 0)
    >>> parse_version_info('1.3.0rc2')
    (1, 3, 0, 'rc2')
    """
    release, found, candidate = version.partition('rc')
    numbers = tuple(int(number) for number in release.split('.'))
    return (*numbers, f'rc{candidate}') if found else numbers


version_info = parse_version_info(__version__)
