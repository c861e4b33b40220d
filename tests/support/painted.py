"""Assertions about what commands wrote and said."""

from splice_ff.images import load_image


def assert_same(path, tensor):
    """As far as 8 bits tell."""
    assert (load_image(path).rgb - tensor).abs().max() < 0.5 / 255 + 1e-5


def assert_refused(result, output, *words):
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line and not line.startswith("note:")]
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    for word in words:
        assert word in lines[0], lines[0]
    assert not output.exists()


# --- transfer -------------------------------------------------------------------------------------------------------
