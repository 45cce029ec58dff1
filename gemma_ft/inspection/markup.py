"""HTML and SVG built from elements, in which all text is escaped unless it is markup itself."""

from html import escape


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(_name: str, *children: str, **attributes: str | float | None) -> Markup:
    """Build an element.

    Args:
        _name: Its name.
        children: Markup as it is, other text escaped.
        attributes: Their values; one that is None is left out. Underscores stand for dashes, and one at the
            end is dropped: class_, font_size.
    """
    words = [_name]
    for key, value in attributes.items():
        if value is not None:
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            words.append(f'{key.rstrip("_").replace("_", "-")}="{escape(text)}"')
    return Markup(f"<{' '.join(words)}>{join(*children)}</{_name}>")


def join(*children: str) -> Markup:
    """Put children after one another."""
    return Markup("".join(child if isinstance(child, Markup) else escape(child) for child in children))
