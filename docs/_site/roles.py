"""Docstrings as Markdown: roles such as :class:`EALearner` become code."""

import re

from griffe import Extension

ROLE = re.compile(r':(?:attr|class|data|func|meth|mod):`~?([^`]+)`')


def plain(text: str) -> str:
    """The text without roles, and with blocks of code fenced as Markdown knows them."""
    return re.sub(r'::$', ':', ROLE.sub(r'`\1`', text), flags=re.MULTILINE)


class Roles(Extension):
    """Reads every docstring that griffe has loaded."""

    def on_instance(self, *, obj, **kwargs):
        """Called by griffe for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = plain(obj.docstring.value)
