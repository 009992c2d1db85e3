"""`TokenData`: a `str` with what is known about the token, which nobody can change."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from mullama import Context, StreamConfig, TokenData, TokenLogprob

ATTRIBUTES = ["token_id", "is_final", "logprob", "top_logprobs", "text"]
TOP = (TokenLogprob(7, b" fox", -0.5), TokenLogprob(8, b" hen", -1.5))


def facts(token: TokenData) -> tuple[object, ...]:
    return (type(token), str(token), *(getattr(token, name) for name in ATTRIBUTES))


@pytest.fixture(params=["made", "generated", "with candidates"])
def token(request: pytest.FixtureRequest, context: Context) -> TokenData:
    if request.param == "made":
        return TokenData(" fox", 7, True, -0.5, TOP)
    n = 2 if request.param == "with candidates" else 0
    with context.generate_stream("Once upon a time", config=StreamConfig(max_tokens=3, top_logprobs=n)) as stream:
        token = next(stream)
    assert len(token.top_logprobs) == n
    assert all(type(candidate) is TokenLogprob for candidate in token.top_logprobs)
    return token


@pytest.mark.parametrize("name", [*ATTRIBUTES, "else"])
def test_no_attribute_can_be_set_or_deleted(name: str, token: TokenData) -> None:
    before = facts(token)
    with pytest.raises(AttributeError, match=f"cannot set '{name}'"):
        setattr(token, name, 1)
    with pytest.raises(AttributeError, match=f"cannot delete '{name}'"):
        delattr(token, name)
    assert facts(token) == before
    assert not hasattr(token, "__dict__")


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, *(lambda t, p=p: pickle.loads(pickle.dumps(t, p)) for p in range(6))],
)
def test_it_is_copied_whole(copied: Callable[[TokenData], TokenData], token: TokenData) -> None:
    assert facts(copied(token)) == facts(token)


def test_it_is_its_text(token: TokenData) -> None:
    assert token == token.text == str(token)
    assert hash(token) == hash(token.text)
    assert {token: 1}[token.text] == 1
    for plain in (token.text, token + "", token.upper().lower(), f"{token}", token[:]):
        assert type(plain) is str
    assert isinstance(token, str)
    assert repr(token).startswith("TokenData(")


def test_its_defaults_and_a_class_of_ones_own() -> None:
    class Own(TokenData):
        def shout(self) -> str:
            return self.upper()

    assert facts(TokenData("a", 1)) == (TokenData, "a", 1, False, 0.0, (), "a")
    own: Any = Own("a", token_id=1, is_final=True)
    assert (own.shout(), own.token_id, own.is_final) == ("A", 1, True)
    with pytest.raises(AttributeError):
        own.token_id = 2
