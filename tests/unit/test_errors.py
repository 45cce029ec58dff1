"""What libraries say, as a part of our lines."""

import pytest

from gemma_ft.errors import first_line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("no kernel image\nCUDA kernel errors might be reported later"), "no kernel image"),
        (ValueError("\n  what was wrong.\n"), "what was wrong."),
        (TimeoutError(), "TimeoutError"),
        (OSError(" \n"), "OSError"),
    ],
)
def test_an_error_is_told_by_its_first_line_or_by_its_type(error, said):
    assert first_line(error) == said
