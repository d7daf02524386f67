"""Answers in XML, as elements."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree

__all__ = ["elements"]


def elements(text: str, tag: str) -> Iterator[ElementTree.Element]:
    """Return all elements of a name; of an empty answer none.

    Raises
    ------
    ValueError
        It is no XML.
    """
    if not text.strip():
        return iter(())
    try:
        return ElementTree.fromstring(text.strip()).iter(tag)
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from error
