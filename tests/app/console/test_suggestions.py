import pytest

from app.console.suggestions import did_you_mean, nearest

METHODS = ["gap", "isqrt-cov", "svd-pade", "svd-taylor"]


@pytest.mark.parametrize(
    ("name", "match"), [("svd-pad", "svd-pade"), ("SVD-Taylor", "svd-taylor"), ("isqrt", "isqrt-cov"), ("xyz", None)]
)
def test_the_nearest_name(name, match):
    assert nearest(name, METHODS) == match


def test_the_question_names_the_nearest_or_is_empty():
    assert did_you_mean("svd-pad", METHODS) == "did you mean svd-pade?"
    assert did_you_mean("xyz", METHODS) == ""
