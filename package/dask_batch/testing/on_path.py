"""Fakes whose commands are put on PATH for a while."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["OnPath"]


class OnPath(ABC):
    """What has its commands in a directory of its own."""

    directory: Path

    @abstractmethod
    def start(self) -> None:
        """Write the commands, and begin; the ``with`` statement does that."""

    @abstractmethod
    def stop(self) -> None:
        """Kill all jobs, and end; the ``with`` statement does that."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def environment(self) -> dict[str, str]:
        """Return what to update an environment with, so that these commands are the system's."""
        return {"PATH": f"{self.directory / 'bin'}:{os.environ.get('PATH', os.defpath)}"}
