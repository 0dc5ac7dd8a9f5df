"""plain_pickle: what the standard library writes is read alike; what data never needs is refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from image_encoders.weights.files import Malformed
from image_encoders.weights.plain_pickle import Name, Record, Refused, Unbuilt, load, record

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
)
keys = st.none() | st.integers(-(2**60), 2**60) | st.text() | st.binary()
values = st.recursive(
    scalars | st.sets(keys) | st.frozensets(keys),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(keys, inner),
    max_leaves=8,
)
old_values = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(keys, inner), max_leaves=8
)


@settings(max_examples=60, deadline=None)
@given(value=values, protocol=st.sampled_from([4, 5]))
def test_plain_values_come_back_equal(value: object, protocol: int) -> None:
    pickled = pickle.dumps(value, protocol)
    assert load(pickled, names={}) == (value, len(pickled))


@settings(max_examples=30, deadline=None)
@given(
    value=st.recursive(
        st.none() | st.integers() | st.text(), lambda i: st.lists(i) | st.dictionaries(st.text(), i), max_leaves=8
    )
)
def test_the_oldest_protocols_come_back_equal(value: object) -> None:
    for protocol in (0, 1, 2, 3):
        assert load(pickle.dumps(value, protocol), names={})[0] == value


def test_lists_that_contain_themselves_come_back() -> None:
    loop: list = [1]
    loop.append(loop)
    found, _ = load(pickle.dumps(loop), names={})
    assert found[0] == 1
    assert found[1] is found


def test_pickles_that_follow_each_other_are_read_one_by_one() -> None:
    both = pickle.dumps("a") + pickle.dumps("b")
    first, at = load(both, names={})
    assert (first, load(both, at, names={})) == ("a", ("b", len(both)))


@pytest.mark.parametrize("extension", [b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00"])
def test_the_extension_registry_is_never_asked(extension: bytes) -> None:
    with pytest.raises(Malformed, match="not one that data needs"):
        load(b"\x80\x02" + extension + b".", names={})


@pytest.mark.parametrize(
    "pickled",
    [
        b".",
        b"(.",
        b"N(.",
        b"0.",
        b"1.",
        b"t.",
        b"R.",
        b"Na.",
        b"Ne.",
        b"](u.",
        b"}(Nu.",
        b"}(]Nu.",
        b"}(}Nu.",
        b"](a.",
        b"]NNs.",
        b"(R.",
        b"NNR.",
        b"Nb.",
        b"NNb.",
        b"h\x00.",
        b"g9\n.",
        b"q\x00.",
        b"(q\x00.",
        b"Q.",
        b"NQ.",
        b"P1\n.",
        b"o.",
        b"(o.",
        b"N)\x81.",
        b"NN\x93.",
        b"I12",
        b"Ix\n.",
        b"L" + b"9" * 5000 + b"L\n.",
        b"\x8b\xff\xff\xff\x7f.",
        b"\x8b\xff\xff\xff\xff.",
        b"T\xff\xff\xff\xff.",
        b"X\xff\xff\xff\xff.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\xffab.",
        b"Snot quoted\n.",
        b"S'half\n.",
        b"F\n.",
        b"V\\uZZZZ\n.",
        b"X\x01\x00\x00\x00\xff.",
        b"\x8f(]\x90.",
        b"](K\x01\x90.",
        b"(}\x91.",
        b"K",
        b"",
        b"\xff.",
        b"V" + b"x" * (1 << 17),
    ],
)
def test_a_malformed_pickle_is_an_error_of_its_kind(pickled: bytes) -> None:
    with pytest.raises((Malformed, ValueError)):
        load(pickled, names={"a.b": Name("a.b", record)})


def test_a_stored_number_beyond_the_memo_costs_no_memory() -> None:
    assert load(b"Nr\xff\xff\xff\xff0j\xff\xff\xff\xff.", names={})[0] is None


def test_a_deeply_nested_key_is_refused_before_it_is_hashed() -> None:
    with pytest.raises(Malformed, match="used as a key"):
        load(b"}" + b")" + b"\x85" * 50_000 + b"Ns.", names={})


def test_keys_that_multiply_are_refused_before_they_are_hashed() -> None:
    shared = b"K\x01" + b"2" * 15 + b"t"
    with pytest.raises(Malformed, match="used as a key"):
        load(b"}(((" + shared + b"q\x00" + b"h\x00" * 15 + b"tq\x01" + b"h\x01" * 15 + b"tNs.", names={})


def test_one_large_value_can_not_be_handed_to_many_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("image_encoders.weights.plain_pickle.COPIED_AT_LEAST", 1000)
    large = b"C\xff" + bytes(255) + b"q\x000"
    calls = b"ca\nf\nh\x00\x85R0"
    names = {"a.f": Name("a.f", lambda raw: raw + raw)}
    assert load(large + calls * 3 + b"N.", names=names)[0] is None
    with pytest.raises(Malformed, match="expands to far more than it holds"):
        load(large + calls * 100 + b"N.", names=names)


def test_a_deeply_nested_value_is_read_without_recursion() -> None:
    found, _ = load(b"N" + b"\x85" * 50_000 + b".", names={})
    assert len(found) == 1


def test_an_endless_pickle_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("image_encoders.weights.plain_pickle.MAX_OPCODES", 1000)
    with pytest.raises(Malformed, match="more than 1,000 opcodes"):
        load(b"N0" * 600 + b"N.", names={})


def test_state_reaches_records_and_nothing_else() -> None:
    def function() -> None: ...

    names: dict[str, object] = {"a.Record": Name("a.Record", record), "a.f": Name("a.f", lambda: function)}
    found, _ = load(b"ca\nRecord\n)\x81}Vx\nK\x01sb.", names=names)
    assert isinstance(found, Record)
    assert vars(found) == {"x": 1}
    for target in (b"ca\nf\n", b"ca\nf\n)R", b"ca\nRecord\n", b"]", b"K\x01"):
        with pytest.raises(Malformed, match="gives state to"):
            load(target + b"}V__code__\nK\x01sb.", names=names)
    assert not hasattr(function, "__dict__") or not vars(function)


def test_a_record_takes_only_named_attributes() -> None:
    names = {"a.Record": Name("a.Record", record)}
    for state in (b"]", b"}K\x01K\x01s", b"K\x01"):
        with pytest.raises(Malformed, match="not a dictionary of attributes"):
            load(b"ca\nRecord\n)\x81" + state + b"b.", names=names)


def test_a_stand_in_becomes_its_value_also_where_it_was_stored() -> None:
    make: Callable[[], Unbuilt] = lambda: Unbuilt(lambda state: ("built", state))  # noqa: E731
    found, _ = load(b"(ca\nU\n)Rq\x00K\x05bh\x00t.", names={"a.U": Name("a.U", make)})
    assert found == (("built", 5), ("built", 5))


def test_a_refused_name_is_said_and_cut_short() -> None:
    with pytest.raises(Refused) as caught:
        load(b"cos" + b"x" * 1000 + b"\nsystem\n.", names={})
    assert len(str(caught.value)) < 200
    with pytest.raises(Refused, match=r"os\\x1b\[31m.system"):
        load(b"cos\x1b[31m\nsystem\n.", names={})
