"""Frames, and hand-overs on the wire: what is sent comes out, anything else is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_batch.backends.local.protocol import (
    MAX_FRAME_BYTES,
    FrameReader,
    ProtocolError,
    encode,
)
from dask_batch.backends.local.submission import Member, Profile, Staged, parts

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text(), VALUES), max_size=5), st.integers(1, 50))
def test_messages_survive_any_cut(bodies: list[dict[str, Any]], step: int) -> None:
    messages = [body | {"type": "t"} for body in bodies]
    stream = b"".join(encode(message) for message in messages)
    reader = FrameReader()
    received = []
    for start in range(0, len(stream), step):
        received += list(reader.feed(stream[start : start + step]))
    assert received == messages


def test_undecodable_bytes_survive() -> None:
    message = {"type": "t", "path": "/a\udcff"}
    assert list(FrameReader().feed(encode(message))) == [message]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"type":1}', b"\xff", b'"type"', b"[" * 10_000, b"{"]
)
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(FrameReader().feed(len(body).to_bytes(4, "big") + body))


def test_the_size_is_refused_before_the_bytes_come() -> None:
    with pytest.raises(ProtocolError):
        list(FrameReader().feed((MAX_FRAME_BYTES + 1).to_bytes(4, "big")))
    with pytest.raises(ProtocolError):
        encode({"type": "t", "data": "x" * MAX_FRAME_BYTES})


def profile(**changes: Any) -> Profile:
    values = {
        "definition": "/d",
        "log_directory": "/l",
        "working_directory": "/w",
        "environment": {"A": "b"},
        "python": "/p",
    }
    return Profile(**values | changes)


def test_a_hand_over_comes_out_as_it_went_in() -> None:
    environments = [{"A": "1"}, {"A": "2", "B": "x\udcff"}]
    profiles = [
        profile(environment=environments[i % 2], cpus=1 + i % 3, run_time_s=0.5, preload=("m",))
        for i in range(900)
    ]
    members = [
        Member(f"n{i}", profiles[i % 900], i, (i - 1,) if i else (), ("local-1",), i % 3 == 0)
        for i in range(20_000)
    ]
    staged = Staged()
    sizes = []
    for message in parts(members):
        wire = encode(message)
        sizes.append(len(wire))
        staged.add(json.loads(wire[4:]))
    assert staged.members == members
    assert len(staged.environments) == 2
    assert max(sizes) < 2**20


GOOD: dict[str, Any] = {
    "environments": [{"A": "1"}],
    "profiles": [
        {
            "definition": "/d",
            "log_directory": "/l",
            "working_directory": "/w",
            "environment": 0,
            "python": "/p",
            "prologue": "",
            "program": "dask_batch.job",
            "cpus": 1,
            "memory_bytes": 0,
            "limit_memory": False,
            "run_time_s": None,
            "priority": 0,
            "warm": True,
            "preload": [],
        }
    ],
    "jobs": [["n", 0, 1, [], [], {}]],
}


def changed_profile(**changes: Any) -> dict[str, Any]:
    return GOOD | {"profiles": [GOOD["profiles"][0] | changes]}


@pytest.mark.parametrize(
    "message",
    [
        GOOD | {"environments": [[]]},
        GOOD | {"environments": {"A": "1"}},
        GOOD | {"environments": [{"A": 1}]},
        GOOD | {"environments": [{"": "x"}]},
        GOOD | {"environments": [{"A=B": "x"}]},
        GOOD | {"environments": [{"A": "x\0y"}]},
        GOOD | {"profiles": [[]]},
        GOOD | {"profiles": [{}]},
        changed_profile(definition=None),
        changed_profile(definition="/a\0b"),
        changed_profile(environment=1),
        changed_profile(environment=True),
        changed_profile(environment=-1),
        changed_profile(cpus=0),
        changed_profile(cpus=1.5),
        changed_profile(cpus="1"),
        changed_profile(memory_bytes=-1),
        changed_profile(memory_bytes=2**70),
        changed_profile(run_time_s=0),
        changed_profile(run_time_s=float("nan")),
        changed_profile(run_time_s=float("inf")),
        changed_profile(preload="numpy"),
        changed_profile(preload=[1]),
        GOOD | {"jobs": [["n", 1, 1, [], [], {}]]},
        GOOD | {"jobs": [["n", 0, 1, []]]},
        GOOD | {"jobs": [[None, 0, 1, [], [], {}]]},
        GOOD | {"jobs": [["n", 0, -1, [], [], {}]]},
        GOOD | {"jobs": [["n", 0, 1, [True], [], {}]]},
        GOOD | {"jobs": [["n", 0, 1, [], [1], {}]]},
        GOOD | {"jobs": [["n", 0, 1, [], []]]},
        GOOD | {"jobs": [["n", 0, 1, [], [], []]]},
        GOOD | {"jobs": [["n", 0, 1, [], [], {"after_end": "local-1"}]]},
        GOOD | {"jobs": [["n", 0, 1, [], [], {"after_failure": [1]}]]},
        GOOD | {"jobs": 5},
    ],
)
def test_everything_is_checked(message: dict[str, Any]) -> None:
    Staged().add(GOOD)
    with pytest.raises(ProtocolError):
        Staged().add(message)
