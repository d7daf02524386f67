"""Values on their way into a job script, where each arrives as data, never as code.

A template prints values into three places that read them in three ways: ``#SBATCH`` lines, shell
commands, comments. So a value that is more than a plain word does not go through the template
itself. A *token* does, a word that no template and no value can contain by accident; when the
script is there, each token's place is known, and the value is put there, quoted as that place
needs it. What no quoting makes safe is refused, by the name of the variable::

    {{ working_directory }}  ->  cd Carried9F3AX0X  ->  cd '/a b/$(touch x)'

In templates such a value can be printed, joined, concatenated, compared and tested; what would
take it apart (``cwd.split("/")``) is an error of the template.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any, Final

from dask_batch.backends.places import Kind, Place, Unsafe
from dask_batch.errors import TemplateError

__all__ = ["Cargo", "Carried"]

_KINDS: Final[Mapping[str, Kind]] = {
    "command": "command",
    "cwd": "path",
    "error": "path",
    "error_log_file": "path",
    "job_extra_directives": "options",
    "output": "path",
    "python": "options",
    "working_directory": "path",
}
"""Of variables that are not simply text. Text and paths are one word each; a list is several."""

_OWN_TEXT = frozenset({"job_script_prologue", "submission_template"})
"""These are shell text, and template text, of the user's own."""

_PLAIN: Final[Mapping[Kind, re.Pattern[str]]] = {
    "path": re.compile(r"[\w@%+=:,./-]*"),
    "text": re.compile(r"~?[\w@%+=:,./-]*"),
    "command": re.compile(r"[\w@%+=:,./\- ]*"),
    "options": re.compile(r"[\w@%+=:,./\- ]*"),
}
"""What means itself wherever it is printed."""


class Carried:
    """A value that a template prints as its token."""

    __slots__ = ("kind", "name", "text", "token")

    def __init__(self, name: str, text: str, kind: Kind, token: str) -> None:
        self.name = name
        self.text = text
        self.kind = kind
        self.token = token

    def __str__(self) -> str:
        return self.token

    __repr__ = __str__  # in a list that is printed

    def __add__(self, other: object) -> str:
        return self.token + str(other)

    def __radd__(self, other: object) -> str:
        return str(other) + self.token

    def __eq__(self, other: object) -> bool:
        return self.text == (other.text if isinstance(other, Carried) else other)

    def __hash__(self) -> int:
        return hash(self.text)

    def __contains__(self, part: str) -> bool:
        return part in self.text


class Cargo:
    """The values that are carried around one rendering."""

    def __init__(self) -> None:
        self._mark = f"Carried{secrets.token_hex(8).upper()}"
        self._token = re.compile(rf"({self._mark}X\d+X)")
        self._items: dict[str, Carried] = {}

    def load(self, name: str, value: Any) -> Any:
        """Return what the template is to see in place of a variable's value."""
        if name in _OWN_TEXT:
            return value
        if isinstance(value, str):
            return self._load_text(name, value)
        if isinstance(value, (list, tuple)):
            loaded = [self.load(name, item) for item in value]
            return value if all(a is b for a, b in zip(loaded, value, strict=True)) else loaded
        return value

    def _load_text(self, name: str, text: str) -> str | Carried:
        if any(ord(c) < 32 or ord(c) == 127 for c in text):
            raise TemplateError(
                f"{name!r} has a newline or another control character in it and cannot be "
                f"part of a job script: {text!r}"
            )
        kind = _KINDS.get(name, "text")
        if _PLAIN[kind].fullmatch(text):
            return text
        carried = Carried(name, text, kind, f"{self._mark}X{len(self._items)}X")
        self._items[carried.token] = carried
        return carried

    def deliver(self, script: str) -> str:
        """Put the values in the places of their tokens.

        Raises
        ------
        TemplateError
            A value is where nothing makes it safe, or the template has taken a token apart.
        """
        if not self._items:
            return script
        place = Place()
        lines = script.split("\n")
        delivered = "\n".join(self._in_line(line, place) for line in lines)
        if self._mark.lower() in delivered.lower():
            names = ", ".join(sorted({repr(item.name) for item in self._items.values()}))
            raise TemplateError(
                f"the submission template changes the text of a value, of {names}: one that has "
                "blanks or special characters can only be printed as it is"
            )
        return delivered

    def _in_line(self, line: str, place: Place) -> str:
        place.begin(line)
        pieces = []
        for piece in self._token.split(line):
            if piece in self._items:
                pieces.append(self._in_place(self._items[piece], place, line))
            else:
                place.advance(piece)
                pieces.append(piece)
        place.end()
        return "".join(pieces)

    def _in_place(self, item: Carried, place: Place, line: str) -> str:
        try:
            return place.quoted(item.text, item.kind, line)
        except Unsafe:
            where = self._token.sub(lambda token: f"{{{{ {self._items[token[0]].name} }}}}", line)
            raise TemplateError(
                f"{item.name!r} cannot be printed safely where the submission template has it: "
                f"its value is {item.text!r}, and a shell might read it as code in\n"
                f"    {where.strip()}\n"
                "Print it as an argument of its own, or choose a value of letters and digits"
            ) from None
