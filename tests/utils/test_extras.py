"""Missing packages are one line that says how to install them."""

import pytest

from splice_ff.errors import InputError
from splice_ff.utils.extras import need


def test_what_is_missing_is_named_with_its_extra():
    need("torch", extra="train")
    with pytest.raises(InputError, match=r'^this needs no_such_module: pip install "splice-ff\[onnx\]"$'):
        need("torch", "no_such_module", extra="onnx")
