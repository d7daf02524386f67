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
import shlex
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

from dask_batch.errors import TemplateError

__all__ = ["Cargo", "Carried", "directive_value"]

_Kind: TypeAlias = Literal["path", "text", "command", "options"]

_KINDS: Final[Mapping[str, _Kind]] = {
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

_PLAIN: Final[Mapping[_Kind, re.Pattern[str]]] = {
    "path": re.compile(r"[\w@%+=:,./-]*"),
    "text": re.compile(r"~?[\w@%+=:,./-]*"),
    "command": re.compile(r"[\w@%+=:,./\- ]*"),
    "options": re.compile(r"[\w@%+=:,./\- ]*"),
}
"""What means itself wherever it is printed."""

_READ_TWICE = re.compile(r"(^|[\s;&|(])(eval|ssh)\s")
_READ_AGAIN = re.compile(r"(^|[\s;&|(])(eval\s|ssh\s|-\w*c\s)")
"""Commands that hand their arguments to a further shell."""

_HEREDOC = re.compile(r"<<-?\s*\\?(['\"]?)(\w+)\1")


def directive_value(text: object) -> str:
    """Quote a value for a ``#SBATCH`` line where it needs it.

    >>> directive_value("debug"), directive_value("/a b/1.out")
    ('debug', '"/a b/1.out"')
    """
    string = str(text)
    if string and not set(string) & set(" \t\"'\\#"):
        return string
    return f'"{_escaped(string, _IN_DIRECTIVE)}"'


_IN_DIRECTIVE = re.compile(r'[\\"]')
_IN_SHELL = re.compile(r'[\\"$`]')


def _escaped(text: str, characters: re.Pattern[str]) -> str:
    """Return what means ``text`` between double quotes."""
    return characters.sub(r"\\\g<0>", text)


class Carried:
    """A value that a template prints as its token."""

    __slots__ = ("kind", "name", "text", "token")

    def __init__(self, name: str, text: str, kind: _Kind, token: str) -> None:
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
        place = _Place()
        lines = script.split("\n")
        delivered = "\n".join(self._in_line(line, place) for line in lines)
        if self._mark.lower() in delivered.lower():
            names = ", ".join(sorted({repr(item.name) for item in self._items.values()}))
            raise TemplateError(
                f"the submission template changes the text of a value, of {names}: one that has "
                "blanks or special characters can only be printed as it is"
            )
        return delivered

    def _in_line(self, line: str, place: _Place) -> str:
        place.begin(line)
        pieces = []
        for piece in self._token.split(line):
            if piece in self._items:
                pieces.append(place.quoted(self._items[piece], line))
            else:
                place.advance(piece)
                pieces.append(piece)
        place.end()
        return "".join(pieces)


class _Place:
    """Where in a script a token is: just as much of the shell's grammar as tells how to quote."""

    def __init__(self) -> None:
        self._quote = ""
        self._outer: list[str] = []
        """The quotes around each ``$(`` or ``(`` that is open."""
        self._backticks = False
        self._comment = ""
        self._heredoc = ""
        self._heredoc_next = ""

    def begin(self, line: str) -> None:
        """Enter a line."""
        if self._heredoc:
            if line.lstrip("\t") == self._heredoc:
                self._heredoc = ""
        elif not self._quote and line.startswith("#"):
            self._comment = line.split(maxsplit=1)[0][:7]

    def end(self) -> None:
        """Leave a line."""
        if self._comment:
            self._comment, self._quote = "", ""
        if self._heredoc_next:
            self._heredoc, self._heredoc_next = self._heredoc_next, ""

    def advance(self, text: str) -> None:
        """Go on over a piece of the template's own text."""
        i = 0
        while i < len(text) and not self._heredoc:
            i += self._step(text, i)

    def _step(self, text: str, i: int) -> int:
        """Take one step; return its length."""
        c, two = text[i], text[i : i + 2]
        if self._quote in ("'", "$'"):
            if c == "\\" and (self._quote == "$'" or self._comment):
                return 2
            self._quote = "" if c == "'" else self._quote
        elif c == "\\":
            return 2
        elif c == '"':
            self._quote = "" if self._quote else '"'
        elif self._comment:
            self._quote = c if c == "'" and not self._quote else self._quote
        elif c == "`":
            self._backticks = not self._backticks
        elif two == "$(":
            self._outer.append(self._quote)
            self._quote = ""
            return 2
        elif not self._quote:
            return self._bare_step(text, i)
        return 1

    def _bare_step(self, text: str, i: int) -> int:
        c, two = text[i], text[i : i + 2]
        if c == "'" or two == "$'":
            self._quote = "'" if c == "'" else "$'"
            return len(self._quote)
        if c == "(":
            self._outer.append("")
        elif c == ")" and self._outer:
            self._quote = self._outer.pop()
        elif c == "#" and (i == 0 or text[i - 1].isspace()):
            self._comment = "#"
        elif two == "<<" and text[i : i + 3] != "<<<":
            match = _HEREDOC.match(text, i)
            self._heredoc_next = match[2] if match else self._heredoc_next
            return match.end() - i if match else 2
        elif two == "<<":
            return 3
        return 1

    def quoted(self, item: Carried, line: str) -> str:
        """Return what means a value in this place."""
        if self._comment == "#SBATCH":
            return self._in_directive(item, line)
        if self._comment and not self._comment.startswith("#!"):
            return item.text
        if self._comment or self._heredoc or self._backticks or self._quote == "$'":
            raise _unsafe(item, line)
        if (_READ_TWICE if item.kind == "command" else _READ_AGAIN).search(line) and not (
            item.kind == "command" and self._quote
        ):
            raise _unsafe(item, line)
        if self._quote == '"':
            return _escaped(item.text, _IN_SHELL)
        if self._quote == "'":
            return item.text.replace("'", "'\"'\"'")
        return _bare(item, line)

    def _in_directive(self, item: Carried, line: str) -> str:
        if self._quote == '"':
            return _escaped(item.text, _IN_DIRECTIVE)
        if self._quote:
            if set(item.text) & set("'\\"):
                raise _unsafe(item, line)
            return item.text
        return item.text if item.kind in ("options", "command") else directive_value(item.text)


def _bare(item: Carried, line: str) -> str:
    """Return what means a value outside of quotes."""
    if item.kind == "command":
        return item.text
    if item.kind == "options":
        try:
            return shlex.join(shlex.split(item.text))
        except ValueError:
            raise _unsafe(item, line) from None
    return shlex.quote(item.text)


def _unsafe(item: Carried, line: str) -> TemplateError:
    where = re.sub(r"Carried[0-9A-F]+X\d+X", f"{{{{ {item.name} }}}}", line).strip()
    return TemplateError(
        f"{item.name!r} cannot be printed safely where the submission template has it: its value "
        f"is {item.text!r}, and a shell would read it as code in\n    {where}\n"
        "Print it as an argument of its own, or choose a value of letters and digits"
    )
