"""Every limit of every field of every configuration, and every wrong type."""

from __future__ import annotations

import dataclasses
import enum
import fractions
import itertools
import math
import pickle
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mullama.config import ContextParams, SamplerParams, StreamConfig
from mullama.errors import InvalidParameter, InvalidParameterType

INF, NAN = math.inf, math.nan
INT_MAX = 2**31 - 1
LOOK_BACK = 2**20

# (class, field): values just inside the limits, and just outside.
Bounds = dict[tuple[type, str], tuple[list[Any], list[Any]]]
REAL: Bounds = {
    (SamplerParams, "temperature"): ([0, 0.0, -0.0, 1e-6, 1.5, 1e6], [-0.1, 1e-7, 5e-324, 1.1e6]),
    (SamplerParams, "top_p"): ([1e-9, 0.5, 1], [0, 0.0, -0.1, 1.0001]),
    (SamplerParams, "min_p"): ([0, 0.5, 1], [-0.1, 1.0001]),
    (SamplerParams, "typical_p"): ([1e-9, 1], [0, 1.0001]),
    (SamplerParams, "top_n_sigma"): ([-1, 1e-3, 3], [0, -0.5, -2, 1.1e6]),
    (SamplerParams, "xtc_probability"): ([0, 1], [-0.1, 1.0001]),
    (SamplerParams, "xtc_threshold"): ([0, 0.5, 1], [-0.1, 1.0001]),
    (SamplerParams, "dynatemp_range"): ([0, 2], [-0.1, 1.1e6]),
    (SamplerParams, "dynatemp_exponent"): ([0, 2], [-0.1, 1.1e3]),
    (SamplerParams, "repeat_penalty"): ([1e-3, 1, 1e3], [0, -1, 1e-50, 1.1e3]),
    (SamplerParams, "frequency_penalty"): ([-2, 0, 2], [-1.1e6, 1.1e6]),
    (SamplerParams, "presence_penalty"): ([-2, 0, 2], [-1.1e6, 1.1e6]),
    (SamplerParams, "dry_multiplier"): ([0, 0.8], [-0.1, 1.1e6]),
    (SamplerParams, "dry_base"): ([1, 1.75], [0.99, 1.1e6]),
    (SamplerParams, "mirostat_tau"): ([0, 100], [-0.1, 101]),
    (SamplerParams, "mirostat_eta"): ([0, 1], [-0.1, 1.1]),
    (SamplerParams, "adaptive_target"): ([-1], [-0.5, 1.1]),  # more only with a chain that ends in it
    (SamplerParams, "adaptive_decay"): ([0, 0.99], [-0.1, 1]),
}
WHOLE: Bounds = {
    (SamplerParams, "top_k"): ([0, 1, INT_MAX], [-1, INT_MAX + 1]),
    (SamplerParams, "penalty_last_n"): ([0, LOOK_BACK], [-1, LOOK_BACK + 1]),
    (SamplerParams, "dry_allowed_length"): ([0, INT_MAX], [-1, INT_MAX + 1]),
    (SamplerParams, "dry_penalty_last_n"): ([0, LOOK_BACK], [-1, LOOK_BACK + 1]),
    (SamplerParams, "mirostat"): ([0, 1, 2], [-1, 3]),
    (SamplerParams, "min_keep"): ([0, INT_MAX], [-1, INT_MAX + 1]),
    (SamplerParams, "seed"): ([None, 0, 2**32 - 2], [-1, 2**32 - 1, 2**32]),
    (StreamConfig, "max_tokens"): ([None, 1, INT_MAX], [0, -2, INT_MAX + 1]),
    (StreamConfig, "stream_delay_ms"): ([0, INT_MAX], [-1, INT_MAX + 1]),
    (StreamConfig, "buffer_size"): ([1, 65536], [0, -1, 65537]),
    (StreamConfig, "min_tokens"): ([0, 256], [-1, 257, INT_MAX + 1]),
    (StreamConfig, "top_logprobs"): ([0, 20], [-1, 21]),
    (StreamConfig, "timeout_ms"): ([0, 1, INT_MAX], [-1, INT_MAX + 1]),
    (ContextParams, "n_ctx"): ([None, 1, INT_MAX // 4], [0, -1, INT_MAX // 4 + 1, INT_MAX + 1]),
    (ContextParams, "n_batch"): ([512, LOOK_BACK], [0, -1, LOOK_BACK + 1]),
    (ContextParams, "n_ubatch"): ([1, 2048], [0, -1, 2049, LOOK_BACK + 1]),
    (ContextParams, "n_seq_max"): ([1, 256], [0, -1, 257]),
    (ContextParams, "max_queue"): ([0, 1, 1024], [-1]),
    (ContextParams, "n_threads"): ([None, 1, 512], [0, -1, 513]),
    (ContextParams, "n_threads_batch"): ([None, 1, 512], [0, -1, 513]),
    (ContextParams, "n_cells"): ([None, 1, INT_MAX], [0, -1, INT_MAX + 1]),
}
for _name in ("temperature", "top_p"):
    REAL[StreamConfig, _name] = REAL[SamplerParams, _name]
WHOLE[StreamConfig, "top_k"] = WHOLE[SamplerParams, "top_k"]
NUMBERS = REAL | WHOLE

FLAGS = [(SamplerParams, "ignore_eos"), (StreamConfig, "parse_special"), (ContextParams, "reuse_prefix")]
TEXTS = [(SamplerParams, "dry_sequence_breakers"), (StreamConfig, "stop_sequences")]
OTHERS = [
    (SamplerParams, "logit_bias"),
    (SamplerParams, "samplers"),
    (SamplerParams, "grammar"),
    (SamplerParams, "json_schema"),
    (StreamConfig, "lora"),
    (StreamConfig, "params"),
]

NO_NUMBER = [
    True,
    False,
    np.True_,
    "1",
    b"1",
    [1],
    (1,),
    {},
    object(),
    1j,
    np.array([1]),
    np.array([0.5]),
    "x" * 10**6,
]


def cases(table: Bounds, side: int) -> list[Any]:
    return [
        pytest.param(cls, name, value, id=f"{cls.__name__}.{name}={value!r}")
        for (cls, name), values in table.items()
        for value in values[side]
    ]


def fields_of(keys: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("cls", "name"), keys, ids=[f"{cls.__name__}.{name}" for cls, name in keys])


def refused(cls: type, name: str, value: Any, kind: type[InvalidParameter] = InvalidParameter) -> InvalidParameter:
    with pytest.raises(kind) as caught:
        cls(**{name: value})
    error = caught.value
    assert type(error) is kind
    assert error.code == "INVALID_PARAMETER"
    assert error.parameter is not None
    assert error.parameter in str(error)
    assert len(str(error)) < 400
    return error


def test_no_field_is_forgotten() -> None:
    classes = (SamplerParams, StreamConfig, ContextParams)
    fields = {(cls, field.name) for cls in classes for field in dataclasses.fields(cls)}
    assert fields == {*NUMBERS, *FLAGS, *TEXTS, *OTHERS}


@pytest.mark.parametrize(("cls", "name", "value"), cases(NUMBERS, 0))
def test_inside_the_bounds(cls: type, name: str, value: Any) -> None:
    kept = getattr(cls(**{name: value}), name)
    assert kept == value
    assert value is None or type(kept) is (float if (cls, name) in REAL else int)


@pytest.mark.parametrize(("cls", "name", "value"), cases(NUMBERS, 1))
def test_outside_the_bounds(cls: type, name: str, value: Any) -> None:
    error = refused(cls, name, value)
    assert error.parameter == name
    assert error.value == value
    assert repr(value) in str(error)


@fields_of(NUMBERS)
@pytest.mark.parametrize("value", NO_NUMBER, ids=lambda value: repr(value)[:20])
def test_not_a_number(cls: type, name: str, value: Any) -> None:
    error = refused(cls, name, value, InvalidParameterType)
    assert error.parameter == name
    assert error.value is value
    assert type(value).__name__ in str(error)


@fields_of(NUMBERS)
def test_none_only_where_it_means_something(cls: type, name: str) -> None:
    if name in ("seed", "max_tokens", "timeout_ms", "n_ctx", "n_cells", "n_threads", "n_threads_batch"):
        assert getattr(cls(**{name: None}), name) is None
    else:
        refused(cls, name, None, InvalidParameterType)


@fields_of(WHOLE)
@pytest.mark.parametrize("value", [1.0, 1.5, INF, NAN, np.float64(1), Decimal(1)], ids=repr)
def test_an_integer_is_not_a_float(cls: type, name: str, value: Any) -> None:
    refused(cls, name, value, InvalidParameterType)


@fields_of(REAL)
@pytest.mark.parametrize("value", [INF, -INF, NAN, np.float32("nan"), 10**400, 1e300], ids=lambda v: repr(v)[:20])
def test_no_infinity_and_no_nan(cls: type, name: str, value: Any) -> None:
    refused(cls, name, value)


@fields_of(NUMBERS)
def test_huge_integers_are_named_in_few_words(cls: type, name: str) -> None:
    assert "bits" in str(refused(cls, name, 10**5000))


@pytest.mark.parametrize("number", [np.int8(2), np.uint64(2), enum.IntEnum("Two", {"TWO": 2}).TWO], ids=repr)
def test_foreign_integers_become_int(number: Any) -> None:
    kept = SamplerParams(mirostat=number).mirostat
    assert kept == 2
    assert type(kept) is int


@pytest.mark.parametrize(
    "number", [np.float32(0.5), np.float64(0.5), Decimal("0.5"), fractions.Fraction(1, 2)], ids=repr
)
def test_foreign_reals_become_float(number: Any) -> None:
    kept = SamplerParams(temperature=number).temperature
    assert kept == 0.5
    assert type(kept) is float


def test_integers_are_numbers_too() -> None:
    kept = SamplerParams(temperature=np.int64(1)).temperature
    assert kept == 1
    assert type(kept) is float


@given(st.floats() | st.integers())
def test_a_temperature_is_kept_or_refused(value: float) -> None:
    if value == 0 or 1e-6 <= value <= 1e6:
        assert StreamConfig(temperature=value).temperature == value
    else:
        assert refused(StreamConfig, "temperature", value).parameter == "temperature"


@given(st.integers())
def test_a_buffer_size_is_kept_or_refused(value: int) -> None:
    if 1 <= value <= 65536:
        assert StreamConfig(buffer_size=value).buffer_size == value
    else:
        refused(StreamConfig, "buffer_size", value)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=5,
)


@given(st.data())
def test_anything_at_all_is_kept_or_refused_by_name(data: st.DataObject) -> None:
    cls, name = data.draw(st.sampled_from(sorted({*NUMBERS, *FLAGS, *TEXTS, *OTHERS}, key=str)))
    value = data.draw(junk)
    try:
        made = cls(**{name: value})
    except InvalidParameter as caught:
        error = caught
    else:
        assert made.replace() == made
        return
    assert name in f"{error.parameter}"
    assert pickle.loads(pickle.dumps(error)).message == error.message


@fields_of(FLAGS)
@pytest.mark.parametrize("value", [0, 1, "yes", None, 1.0, np.int64(1)], ids=repr)
def test_flags_are_true_or_false(cls: type, name: str, value: Any) -> None:
    refused(cls, name, value, InvalidParameterType)
    assert getattr(cls(**{name: True}), name) is True
    assert getattr(cls(**{name: False}), name) is False


def test_minus_one_is_until_the_end() -> None:
    assert StreamConfig(max_tokens=-1) == StreamConfig(max_tokens=None) == StreamConfig(max_tokens=np.int32(-1))


def test_the_random_seed_of_llama_cpp_is_explained() -> None:
    assert "llama.cpp" in str(refused(SamplerParams, "seed", 2**32 - 1))


# -- strings


@fields_of(TEXTS)
def test_strings_in_any_iterable(cls: type, name: str) -> None:
    for value in (["a", "b"], ("a", "b"), iter("ab"), {"a": 1, "b": 2}, np.array(["a", "b"])):
        kept = getattr(cls(**{name: value}), name)
        assert kept == ("a", "b")
        assert all(type(text) is str for text in kept)
    assert getattr(cls(**{name: []}), name) == ()


@fields_of(TEXTS)
@pytest.mark.parametrize("value", ["END", b"END", bytearray(b"END"), ""], ids=repr)
def test_one_string_is_refused_with_the_remedy(cls: type, name: str, value: Any) -> None:
    assert f"{name}=[{value!r}]" in str(refused(cls, name, value, InvalidParameterType))


@fields_of(TEXTS)
@pytest.mark.parametrize("value", [None, 1, 1.5, True, object()], ids=lambda value: type(value).__name__)
def test_strings_that_cannot_be_iterated(cls: type, name: str, value: Any) -> None:
    refused(cls, name, value, InvalidParameterType)


@fields_of(TEXTS)
@pytest.mark.parametrize("item", [None, 1, b"x", ["x"]], ids=repr)
def test_items_that_are_no_strings(cls: type, name: str, item: Any) -> None:
    assert refused(cls, name, ["a", item], InvalidParameterType).parameter == f"{name}[1]"


@fields_of(TEXTS)
@pytest.mark.parametrize("item", ["", "\ud800", "a\udcffb"], ids=ascii)
def test_strings_that_cannot_be_used(cls: type, name: str, item: str) -> None:
    assert refused(cls, name, ["a", item]).parameter == f"{name}[1]"


@pytest.mark.parametrize(
    ("cls", "name", "count", "size"),
    [(StreamConfig, "stop_sequences", 64, 4096), (SamplerParams, TEXTS[0][1], 32, 40)],
)
def test_how_many_strings_and_how_long(cls: type, name: str, count: int, size: int) -> None:
    most = ["x" * size] * (count - 1) + ["é" * (size // 2)]
    assert getattr(cls(**{name: most}), name) == tuple(most)
    assert f"at most {count}" in str(refused(cls, name, [*most, "x"]))
    assert f"at most {count}" in str(refused(cls, name, itertools.repeat("x")))  # endless
    assert str(size) in str(refused(cls, name, ["x" * (size + 1)]))
    assert str(size) in str(refused(cls, name, ["é" * (size // 2) + "x"]))
    refused(cls, name, ["x" * 10**7])


def test_nul_ends_a_string_of_llama_cpp_but_not_ours() -> None:
    refused(SamplerParams, "dry_sequence_breakers", ["a\0b"])
    assert StreamConfig(stop_sequences=["a\0b"]).stop_sequences == ("a\0b",)


def test_a_subclass_of_str_gives_its_own_characters() -> None:
    class Mark(str, enum.Enum):
        END = "</s>"

    kept = StreamConfig(stop_sequences=[Mark.END]).stop_sequences[0]
    assert kept == "</s>"
    assert type(kept) is str


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=5), max_size=64))
def test_text_that_utf8_can_encode_is_kept(texts: list[str]) -> None:
    assert StreamConfig(stop_sequences=texts).stop_sequences == tuple(texts)


# -- logit bias


def test_logit_bias_is_a_mapping_that_cannot_change() -> None:
    given_ = {5: np.float32(1.5), np.int64(7): -INF}
    kept = SamplerParams(logit_bias=given_).logit_bias
    given_.clear()
    assert kept == {5: 1.5, 7: -INF}
    assert kept is not None
    assert [type(x) for pair in kept.items() for x in pair] == [int, float] * 2
    with pytest.raises(TypeError):
        kept[5] = 2.0  # type: ignore[index]
    with pytest.raises(AttributeError):
        kept.clear()  # type: ignore[attr-defined]


def test_an_empty_logit_bias_is_none() -> None:
    assert SamplerParams(logit_bias={}).logit_bias is None


@pytest.mark.parametrize("value", [[1], [(1, 2.0)], 3, "x", {1}], ids=repr)
def test_logit_bias_of_a_wrong_type(value: Any) -> None:
    refused(SamplerParams, "logit_bias", value, InvalidParameterType)


@pytest.mark.parametrize("token", [-1, INT_MAX + 1])
def test_logit_bias_tokens_out_of_range(token: int) -> None:
    assert "logit_bias" in str(refused(SamplerParams, "logit_bias", {token: 1.0}))


@pytest.mark.parametrize("token", ["a", 1.0, True, None], ids=repr)
def test_logit_bias_tokens_of_a_wrong_type(token: Any) -> None:
    refused(SamplerParams, "logit_bias", {token: 1.0}, InvalidParameterType)


@pytest.mark.parametrize("bias", [INF, NAN, 1e7, -1e7, 10**400], ids=lambda v: repr(v)[:20])
def test_logit_bias_out_of_range(bias: float) -> None:
    assert refused(SamplerParams, "logit_bias", {3: bias}).parameter == "logit_bias[3]"


@pytest.mark.parametrize("bias", ["1", None, True, [1.0]], ids=repr)
def test_logit_bias_of_no_number(bias: Any) -> None:
    refused(SamplerParams, "logit_bias", {3: bias}, InvalidParameterType)


@pytest.mark.parametrize("value", [{"temperature": 0.7}, 0.7, StreamConfig(), SamplerParams], ids=lambda v: str(v)[:20])
def test_params_of_a_wrong_type(value: Any) -> None:
    refused(StreamConfig, "params", value, InvalidParameterType)
