"""Every case passes every check, and a wrong row, preprocessing or option is seen."""

import re

import numpy as np
import pytest

from image_encoders import UnknownModel, models
from image_encoders.conformance import bundle, cases

QUICK = ("clip-tiny-quickgelu", "clip-tiny-gelu", "custom-conv", "custom-features", "custom-inplace")
REFERENCE = {"device": "cpu", "precision": "float32", "engine": "torch"}
# Keys of the reference that `verify` leaves to the golden tests: float64's rows, stages inside the nets, spectrograms,
# steps that are no option of the family, and the rows of one sound twice in a batch.
LEFT = (
    r".*/out_(f64|l2)|.*_f64\w*|stage.*|.*/cnn_out.*|.*/logits.*|audio/(xdb|batch2).*|image/clip_pil/out|.*not_this.*"
)


def case(name: str) -> cases.Case:
    return next(one for one in cases.CASES if one.name == name)


def run(one: cases.Case, checkpoint) -> list[cases.Result]:
    return list(cases.verify(one, checkpoint(one.name).parent, **REFERENCE))


def test_every_case_of_the_bundle_is_here():
    assert {one.name for one in cases.CASES} == set(bundle.manifest()["cases"])
    assert (
        {one.family for one in cases.CASES} == {"audioclip", "bit", "clip", "custom", "vsepp"} <= set(models.families())
    )


@pytest.mark.parametrize("name", [one.name for one in cases.CASES])
def test_every_embedding_of_the_reference_is_checked(name):
    wanted = {
        key: array for key, array in bundle.golden(name).items() if key.endswith("/out") and not re.fullmatch(LEFT, key)
    }
    compared = [check.reference for check in cases.checks(case(name))]
    assert wanted
    for key, rows in wanted.items():
        for row in np.atleast_2d(rows):
            assert any((rows == row).all(1).any() for rows in compared if rows.shape[1] == len(row)), key


@pytest.mark.parametrize("name", [one.name for one in cases.CASES])
def test_every_check_has_a_limit_and_options_that_the_family_knows(name):
    for check in cases.checks(case(name)):
        assert str(check.limits), check.stage
        assert np.isfinite(check.reference).all()


@pytest.mark.parametrize(
    "name",
    [pytest.param(one.name, marks=() if one.name in QUICK else pytest.mark.golden) for one in cases.CASES],
)
def test_a_case_passes_every_check(name, checkpoint):
    results = run(case(name), checkpoint)
    assert [str(one) for one in results if not one.passed] == []
    assert len(results) == len(list(cases.checks(case(name))))


def test_embeddings_of_another_checkpoint_fail(checkpoint):
    other = cases.Case("clip-tiny-gelu", "clip", "", rules=cases.CLIP_RULES)
    weights = checkpoint("clip-tiny-quickgelu")
    encoder = other.load(weights, {}, **REFERENCE)
    found = {check.stage: check for check in cases.checks(other)}
    rows = found["prepared 224 x 224"].found(encoder)
    agreement = cases.agreement(rows, found["prepared 224 x 224"].reference)
    assert not found["prepared 224 x 224"].limits.hold(agreement)
    # the preprocessing of both is the same
    same = found["preprocessing clip_hf"]
    assert same.limits.hold(cases.agreement(same.found(encoder), same.reference))


def test_another_crop_fails_at_preprocessing_already(checkpoint):
    one = case("clip-tiny-gelu")
    encoder = one.load(one.weights(checkpoint(one.name).parent), {"crop": "round"}, **REFERENCE)
    failed = [
        check.stage
        for check in cases.checks(one)
        if not check.limits.hold(cases.agreement(check.found(encoder), check.reference))
    ]
    assert failed[:2] == ["preprocessing clip_hf", "pixels clip_hf"]
    assert "preprocessing clip_pil" not in failed


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("all", [one.name for one in cases.CASES]),
        ("bit/R50x3", ["bit-npz-R50x3"]),
        ("clip-tiny-gelu", ["clip-tiny-gelu"]),
        ("custom", ["custom-conv", "custom-features", "custom-inplace"]),
    ],
)
def test_cases_are_found_by_family_model_and_name(name, expected):
    assert [one.name for one in cases.named(name)] == expected


@pytest.mark.parametrize(("name", "shown"), [("bit/R101x1", "bit/R50x1, bit/R50x3"), ("bti", "audioclip, bit, clip")])
def test_the_error_for_a_model_without_a_case_lists_those_that_have_one(name, shown):
    with pytest.raises(UnknownModel, match=shown):
        cases.named(name)


def test_large_cases_are_left_out_unless_a_family_has_no_other():
    chosen = cases.small(cases.CASES)
    assert {one.family for one in chosen} == {one.family for one in cases.CASES}
    large = [one.name for one in chosen if bundle.size(one.name) >= cases.SMALL]
    assert large == ["audioclip"]
    assert cases.small(cases.named("bit/R50x3")) == cases.named("bit/R50x3")
