import pickle

import pytest

from labkit.core import errors
from labkit.core.errors import LabkitError

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, LabkitError)
]


def test_message_says_what_where_and_what_to_do():
    error = LabkitError("3 NaN", where="layer 2", remedy="Look at layer 1.")
    assert str(error) == "layer 2: 3 NaN. Look at layer 1."
    assert str(LabkitError("3 NaN")) == "3 NaN"
    assert (error.what, error.where, error.remedy) == ("3 NaN", "layer 2", "Look at layer 1.")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_survives_pickling_with_its_parts(kind):
    error = pickle.loads(pickle.dumps(kind("what", where="where", remedy="remedy")))
    assert type(error) is kind
    assert str(error) == "where: what. remedy"
    assert error.remedy == "remedy"


@pytest.mark.parametrize("kind", [k for k in KINDS if k is not LabkitError])
def test_every_error_is_also_a_builtin(kind):
    assert issubclass(kind, (ValueError, RuntimeError, ConnectionError))
