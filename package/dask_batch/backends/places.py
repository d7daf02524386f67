"""The places of a job script, and how each of them wants a value to be quoted.

A script is followed from its beginning with just as much of the shell's grammar as tells whether a
place is bare, between quotes, in a comment, a ``#SBATCH`` line or a here-document. Where that is
not certain, no value is put.
"""

from __future__ import annotations

import re
import shlex
from typing import Literal, TypeAlias

__all__ = ["Kind", "Place", "Unsafe", "directive_value"]

Kind: TypeAlias = Literal["path", "text", "command", "options"]
"""A path, or text: one word; a command: shell text of ours; options: words in quotes of a user."""

_READ_TWICE = re.compile(r"(^|[\s;&|(])(eval|ssh)\s")
_READ_AGAIN = re.compile(r"(^|[\s;&|(])(eval\s|ssh\s|-\w*c\s)")
"""Commands that hand their arguments to a further shell."""

_HEREDOC = re.compile(r"<<(-?)[ \t]*\\?(['\"]?)(\w+)\2(?=[\s;&|]|$)")
_PARAMETER = re.compile(r"\$\{(?:[^'\"`\\{}$]|\$\w)*\}")

_IN_DIRECTIVE = re.compile(r'[\\"]')
_IN_SHELL = re.compile(r'[\\"$`]')


_OTHER_DIRECTIVES = ("#PBS", "#$", "#BSUB", "#MSUB")
"""Lines of other batch systems, which are no comments either."""


class Unsafe(Exception):
    """Nothing makes a value safe in this place."""


def directive_value(text: object) -> str:
    """Quote a value for a ``#SBATCH`` line where it needs it.

    >>> directive_value("debug"), directive_value("/a b/1.out")
    ('debug', '"/a b/1.out"')
    """
    string = str(text)
    if string and not set(string) & set(" \t\"'\\#"):
        return string
    return f'"{_escaped(string, _IN_DIRECTIVE)}"'


def _escaped(text: str, characters: re.Pattern[str]) -> str:
    """Return what means ``text`` between double quotes."""
    return characters.sub(r"\\\g<0>", text)


class Place:
    """A place in a script, that moves on through it line by line."""

    def __init__(self) -> None:
        self._quote = ""
        self._outer: list[str] = []
        """The quotes around each ``$(`` or ``(`` that is open."""
        self._comment = ""
        self._backticks = False
        self._sums = 0
        """How many parentheses are open in ``$((`` ... ``))``, its own included."""
        self._heredoc: re.Match[str] | None = None
        self._heredoc_next: re.Match[str] | None = None
        self._before = " "
        """The character before this place; that of a blank at the beginning of a line."""
        self._escaped = False
        """Whether a backslash stands before this place, or stood at the end of the last line."""
        self._lost = False
        """Whether the grammar is beyond us here, and so in all that follows."""

    # ---- moving on -------------------------------------------------------------------------

    def begin(self, line: str) -> None:
        """Enter a line."""
        if self._heredoc is not None:
            if (line.lstrip("\t") if self._heredoc[1] else line) == self._heredoc[3]:
                self._heredoc = None
        elif self._escaped:  # it goes on with the last one
            self._escaped = False
        else:
            self._before = " "
            opaque = self._quote or self._backticks or self._sums
            if not opaque and line.startswith("#"):
                self._comment = line.split(maxsplit=1)[0][:7]

    def end(self) -> None:
        """Leave a line."""
        if self._comment:
            self._comment, self._quote, self._escaped = "", "", False
        if self._heredoc_next is not None:
            self._heredoc, self._heredoc_next = self._heredoc_next, None
            self._lost = self._lost or bool(self._quote or self._escaped)

    def advance(self, text: str) -> None:
        """Go on over a piece of the template's own text."""
        i = 0
        while i < len(text) and self._heredoc is None:
            i += self._step(text, i)
            self._before = text[i - 1] if i <= len(text) else "\\"
        self._escaped = i > len(text)

    def _step(self, text: str, i: int) -> int:
        """Take one step; return its length."""
        c, two = text[i], text[i : i + 2]
        if self._backticks:
            self._backticks = c != "`"
            return 2 if c == "\\" else 1
        if self._sums:
            return self._sum_step(text, i)
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
            self._backticks = True
        elif two == "${":
            match = _PARAMETER.match(text, i)
            self._lost = self._lost or match is None
            return match.end() - i if match else 2
        elif text.startswith("$((", i):
            self._sums = 2
            return 3
        elif two == "$(":
            self._outer.append(self._quote)
            self._quote = ""
            return 2
        elif not self._quote:
            return self._bare_step(text, i)
        return 1

    def _sum_step(self, text: str, i: int) -> int:
        """Take one step in arithmetic, where quotes do not quote."""
        c = text[i]
        if c in "'\"`\\" or (c == "$" and not text[i + 1 : i + 2].isalnum()):
            self._lost = True
        self._sums += (c == "(") - (c == ")")
        return 1

    def _bare_step(self, text: str, i: int) -> int:
        c, two = text[i], text[i : i + 2]
        if c == "'" or two == "$'":
            self._quote = "'" if c == "'" else "$'"
            return len(self._quote)
        if two == "((":
            self._sums = 2
            return 2
        if c == "(":
            self._outer.append("")
        elif c == ")" and self._outer:
            self._quote = self._outer.pop()
        elif c == "#" and self._before in " \t;&|(":
            self._comment = "#"
        elif c == "#" and self._before in ")<>":
            self._lost = True  # a comment, or not, by what was opened before
        elif two == "<<":
            return self._redirection(text, i)
        elif text.startswith("case", i) and self._outer:
            self._lost = True  # its patterns end with parentheses that nothing has opened
        return 1

    def _redirection(self, text: str, i: int) -> int:
        """Step over ``<<``, behind which a here-document may begin."""
        if text.startswith("<<<", i):
            return 3
        match = _HEREDOC.match(text, i)
        if match is None or self._heredoc_next is not None or self._outer or self._backticks:
            self._lost = True
            return 2
        self._heredoc_next = match
        return match.end() - i

    # ---- putting a value -------------------------------------------------------------------

    def quoted(self, text: str, kind: Kind, line: str) -> str:
        """Return what means a value in this place.

        Raises
        ------
        Unsafe
            Nothing does, for certain.
        """
        try:
            return self._quoted(text, kind, line)
        finally:
            self._before = "x"

    def _quoted(self, text: str, kind: Kind, line: str) -> str:
        if self._lost or self._escaped:
            raise Unsafe
        if self._comment == "#SBATCH":
            return self._in_directive(text, kind)
        if self._comment.startswith(_OTHER_DIRECTIVES):
            return self._in_other_directive(text, kind)
        if self._comment and not self._comment.startswith("#!"):
            return text
        if self._comment or self._heredoc or self._backticks or self._sums:
            raise Unsafe
        again = _READ_TWICE if kind == "command" else _READ_AGAIN
        if self._quote == "$'" or (again.search(line) and not (kind == "command" and self._quote)):
            raise Unsafe
        if self._quote == '"':
            return _escaped(text, _IN_SHELL)
        if self._quote == "'":
            return text.replace("'", "'\"'\"'")
        return _bare(text, kind)

    def _in_other_directive(self, text: str, kind: Kind) -> str:
        """Print options of a user's; how these systems read quotes differs, where they read any."""
        if self._quote or kind != "options":
            raise Unsafe
        return text

    def _in_directive(self, text: str, kind: Kind) -> str:
        if self._quote == '"':
            return _escaped(text, _IN_DIRECTIVE)
        if self._quote:
            if set(text) & set("'\\"):
                raise Unsafe
            return text
        return text if kind in ("options", "command") else directive_value(text)


def _bare(text: str, kind: Kind) -> str:
    """Return what means a value outside of quotes."""
    if kind == "command":
        return text
    if kind == "options":
        try:
            return shlex.join(shlex.split(text))
        except ValueError:
            raise Unsafe from None
    return shlex.quote(text)
