"""Products of layers: the same by torch and by oneDNN, and who is asked when."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastrl.learn import processor, products

ROWS, GIVEN, UNITS = 32, 2304, 48  # 3.5 million multiplications, a layer that is wide


@pytest.fixture(params=["torch's", "oneDNN's"])
def multiplier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """Who multiplies; lists what oneDNN was asked for."""
    asked: list[tuple[int, ...]] = []
    product = products.find_one_dnn() if request.param == "oneDNN's" else None
    if request.param == "oneDNN's":
        if not torch.backends.mkldnn.is_available():
            pytest.skip("this torch was built without oneDNN")

        def counted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            asked.append((len(x), *weight.shape))
            assert product is not None, "oneDNN is there, but its product is not called so any more"
            return product(x, weight, bias)

        monkeypatch.setattr(products, "_one_dnn", counted)
    else:
        monkeypatch.setattr(products, "_one_dnn", None)
    yield asked
    assert bool(asked) == (request.param == "oneDNN's")


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def near(found: Tensor, expected: Tensor) -> None:
    """As sums of thousands in fp32 are, beside those in float64."""
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


def test_a_layers_products_are_those_of_float64(multiplier: list[tuple[int, ...]]) -> None:
    x, weight, bias = numbers(ROWS, GIVEN), numbers(UNITS, GIVEN, seed=1), numbers(UNITS, seed=2)
    slope, out = numbers(ROWS, UNITS, seed=3), torch.full((UNITS, GIVEN), 7.0)
    products.write_slope_of_weight(slope, x, out)

    near(products.affine(x, weight, bias), x.double() @ weight.double().t() + bias.double())
    near(products.slope_of_given(slope, weight), slope.double() @ weight.double())
    near(out, slope.double().t() @ x.double())


def test_parts_and_turned_memory_are_read_as_they_lie(multiplier: list[tuple[int, ...]]) -> None:
    x, slope = numbers(GIVEN, ROWS).t(), numbers(UNITS, ROWS, seed=3).t()
    weight = numbers(UNITS, 2 * GIVEN, seed=1)[:, 5 : 5 + GIVEN]
    whole = torch.zeros(UNITS, 2 * GIVEN)
    out = whole[:, 3 : 3 + GIVEN]
    products.write_slope_of_weight(slope, x, out)

    near(products.affine(x, weight, torch.zeros(UNITS)), x.double() @ weight.double().t())
    near(products.slope_of_given(slope, weight), slope.double() @ weight.double())
    near(out, slope.double().t() @ x.double())
    assert whole.count_nonzero() == out.count_nonzero()


@pytest.mark.parametrize(("rows", "kind"), [(2, torch.float32), (ROWS, torch.bfloat16), (ROWS, torch.float64)])
def test_small_products_and_other_numbers_are_torchs(
    rows: int, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Tensor:
        raise AssertionError("asked")

    monkeypatch.setattr(products, "_one_dnn", refuse)
    x, weight = numbers(rows, GIVEN).to(kind), numbers(UNITS, GIVEN).to(kind)
    slope = products.affine(x, weight, weight.new_zeros(UNITS))
    products.write_slope_of_weight(slope, x, torch.empty_like(weight))
    assert products.slope_of_given(slope, weight).dtype == kind


@pytest.mark.parametrize("wrong", ["absent", "refuses", "another result"])
def test_a_torch_whose_call_is_another_is_left_alone(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Calls:
        def __getattr__(self, name: str) -> object:
            if wrong == "absent":
                raise AttributeError(name)
            return self.answer

        def answer(self, x: Tensor, weight: Tensor, *_: object) -> Tensor:
            if wrong == "refuses":
                raise RuntimeError("expected at most 5 arguments")
            return x.mm(weight.t()) + 1

    monkeypatch.setattr(torch.ops, "mkldnn", Calls())
    assert products.find_one_dnn() is None


@pytest.mark.parametrize(
    ("text", "slowed"),
    [
        ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2\n", False),
        ("vendor_id\t: GenuineIntel\nflags\t\t: fpu avx2 avx512f\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd\n", False),
    ],
)
def test_it_is_amds_wide_vectors_that_mkl_leaves_unused(text: str, slowed: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert processor.is_slowed_by_mkl(tmp_path / "cpuinfo") is slowed
    assert not processor.is_slowed_by_mkl(tmp_path / "none")
