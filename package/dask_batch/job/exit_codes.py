"""What a job's exit code says, where the job could leave no record that says more.

0 means that the result is in the store. The others tell of a node on which the job could not even
read what it was to do, or could not write down how it ended; the words for people are in its log.
This module imports nothing: it is read by whatever interpreter a job was started with.
"""

__all__ = [
    "BAD_DEFINITION",
    "BAD_PYTHON",
    "ENVIRONMENT",
    "FAILED",
    "MEANINGS",
    "NO_CACHE",
    "NO_DIRECTORY",
    "NO_MODULE",
    "NO_SPACE",
]

FAILED = 1
"""It ended without a result; its end record says how."""
NO_CACHE = 70
BAD_PYTHON = 71
NO_MODULE = 72
NO_SPACE = 73
BAD_DEFINITION = 74
NO_DIRECTORY = 75

MEANINGS = {
    NO_CACHE: "its node does not share the cache directory, or may not use it",
    BAD_PYTHON: "its interpreter is another Python than the one that the task was hashed under",
    NO_MODULE: "its interpreter lacks a module that the task needs",
    NO_SPACE: "neither its result nor how it ended could be written into the cache",
    BAD_DEFINITION: "what it was to do could not be read",
    NO_DIRECTORY: "its working directory does not exist on its node",
}

ENVIRONMENT = frozenset({NO_CACHE, BAD_PYTHON, NO_MODULE, NO_DIRECTORY})
"""Those that mean: the node, its interpreter or its files are not fit for the task."""
