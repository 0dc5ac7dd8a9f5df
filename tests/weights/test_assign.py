"""assign: nothing missing, nothing left over, nothing of another shape; and no needless copy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from torch import nn

from image_encoders.errors import WeightsError
from image_encoders.weights.assign import assign
from image_encoders.weights.digest import weights_digest


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: torch.rand_like(t) if t.is_floating_point() else t + 5 for name, t in small().state_dict().items()}


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return small()


@pytest.mark.parametrize("build", [small, on_meta])
def test_a_net_gets_every_tensor_and_is_ready_for_use(build: object, state: dict[str, torch.Tensor]) -> None:
    net = assign(build(), state, "a.pt")  # type: ignore[operator]
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    for name, found in net.state_dict().items():
        assert found.device.type == "cpu"
        assert torch.equal(found, state[name])


def test_tensors_that_fit_are_not_copied(state: dict[str, torch.Tensor]) -> None:
    net = assign(on_meta(), state, "a.pt")
    for name, found in net.state_dict().items():
        assert found.data_ptr() == state[name].data_ptr()


def test_arrays_are_taken_as_well(state: dict[str, torch.Tensor]) -> None:
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    arrays["0.weight"] = arrays["0.weight"].transpose(2, 3, 1, 0).copy().transpose(3, 2, 0, 1)
    arrays["0.bias"] = arrays["0.bias"][::-1].copy()[::-1]
    arrays["2.weight"] = arrays["2.weight"].astype(">f4")
    arrays["2.bias"].flags.writeable = False
    net = assign(on_meta(), arrays, "a.npz")
    for name, found in net.state_dict().items():
        assert torch.equal(found, state[name])
        assert found.is_contiguous()


def test_half_and_double_become_the_type_of_the_net(state: dict[str, torch.Tensor]) -> None:
    net = assign(on_meta(), {k: v.half() if v.is_floating_point() else v for k, v in state.items()}, "a.pt")
    assert all(p.dtype == torch.float32 for p in net.parameters())
    assert torch.equal(net.get_parameter("2.bias"), state["2.bias"].half().float())


def test_missing_and_extra_tensors_are_both_listed(state: dict[str, torch.Tensor]) -> None:
    del state["0.weight"], state["2.bias"]
    state |= {f"head.{i}": torch.ones(1) for i in range(7)}
    with pytest.raises(WeightsError) as caught:
        assign(on_meta(), state, "photos/a.pt")
    assert str(caught.value) == (
        "photos/a.pt: 2 missing (0.weight, 2.bias); 7 not part of this net (head.0, head.1, head.2, head.3, head.4, "
        "...). It has 14 tensors, the net has 9; is it a checkpoint of another variant?"
    )


def test_shapes_that_differ_are_listed_with_both(state: dict[str, torch.Tensor]) -> None:
    state["0.weight"] = torch.ones(4, 3, 5, 5)
    state["2.bias"] = torch.ones(2, dtype=torch.int64)
    with pytest.raises(WeightsError) as caught:
        assign(on_meta(), state, "a.pt")
    assert "2 tensors do not fit: 0.weight is float32 (4, 3, 5, 5), wanted float32 (4, 3, 3, 3)" in str(caught.value)
    assert "2.bias is int64 (2,), wanted float32 (2,)" in str(caught.value)


def test_the_step_counter_of_batch_norm_may_be_missing_or_left_over(state: dict[str, torch.Tensor]) -> None:
    del state["1.num_batches_tracked"]
    state["2.num_batches_tracked"] = torch.tensor(3)
    net = assign(on_meta(), state, "a.pt")
    assert int(net.get_buffer("1.num_batches_tracked")) == 0


def test_names_can_be_translated_and_left_out(state: dict[str, torch.Tensor]) -> None:
    renamed = {f"model.{name}": value for name, value in state.items()} | {"head": torch.ones(1)}
    net = assign(on_meta(), renamed, "a.pt", rename=lambda n: None if n == "head" else n.removeprefix("model."))
    assert torch.equal(net.get_parameter("2.bias"), state["2.bias"])


def test_two_tensors_for_one_place_are_refused(state: dict[str, torch.Tensor]) -> None:
    state["model.2.bias"] = state["2.bias"]
    with pytest.raises(WeightsError, match=r"both 2.bias and model.2.bias are given for 2.bias"):
        assign(on_meta(), state, "a.pt", rename=lambda name: name.removeprefix("model."))


@pytest.mark.parametrize("value", [None, "text", [1.0], np.array(["a"]), np.array([None])])
def test_what_is_not_a_tensor_is_named(state: dict[str, object], value: object) -> None:
    state["2.bias"] = value
    with pytest.raises(WeightsError, match=r"2\.bias"):
        assign(on_meta(), state, "a.pt")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ([torch.ones(1)], "holds a list; a state_dict"),
        (None, "holds a NoneType"),
        ({1: torch.ones(1)}, "keys are of type int"),
    ],
)
def test_what_is_not_a_state_dict_is_named(other: object, said: str) -> None:
    with pytest.raises(WeightsError, match=said):
        assign(on_meta(), other, "a.pt")  # type: ignore[arg-type]


def test_a_lazy_mapping_is_asked_for_each_tensor_once(state: dict[str, torch.Tensor]) -> None:
    class Lazy(Mapping[str, torch.Tensor]):
        asked: list[str] = []  # noqa: RUF012

        def __getitem__(self, name: str) -> torch.Tensor:
            self.asked.append(name)
            return state[name]

        def __iter__(self) -> Iterator[str]:
            return iter(state)

        def __len__(self) -> int:
            return len(state)

    lazy = Lazy()
    assign(on_meta(), lazy, "a.pt")
    assert sorted(lazy.asked) == sorted(state)


def test_the_digest_is_of_names_types_shapes_and_values(state: dict[str, torch.Tensor]) -> None:
    digest = weights_digest(state)
    assert len(digest) == 64
    assert weights_digest(dict(reversed(state.items()))) == digest
    assert weights_digest({n: t.numpy() for n, t in state.items()}) == digest
    assert weights_digest({n: t.clone(memory_format=torch.preserve_format) for n, t in state.items()}) == digest
    changed = [
        state | {"2.bias": state["2.bias"] + 1e-3},
        state | {"2.bias": state["2.bias"].double()},
        state | {"2.bias": state["2.bias"].reshape(1, 2)},
        {("x" if n == "2.bias" else n): t for n, t in state.items()},
        {n: t for n, t in state.items() if n != "2.bias"},
    ]
    assert len({weights_digest(one) for one in changed} | {digest}) == 6


def test_the_digest_does_not_depend_on_memory_order() -> None:
    matrix = torch.arange(12.0).reshape(3, 4)
    wanted = weights_digest({"x": matrix})
    assert weights_digest({"x": matrix.t().contiguous().t()}) == wanted
    assert weights_digest({"x": np.asfortranarray(matrix.numpy())}) == wanted
    assert weights_digest({"x": matrix.numpy().astype(">f4")}) == wanted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.int64])
def test_every_type_has_a_digest(dtype: torch.dtype) -> None:
    some, other = torch.tensor([0, 1]).to(dtype), torch.tensor([1, 0]).to(dtype)
    assert weights_digest({"x": some}) != weights_digest({"x": other})
    assert weights_digest({"x": torch.empty(0, dtype=dtype)}) != weights_digest({"x": torch.empty(0, 2, dtype=dtype)})
