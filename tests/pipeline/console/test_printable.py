"""Names from other people, as a terminal may show them."""

import os

from pipeline.console.printable import printable
from pipeline.data.errors import few


def test_signs_that_steer_a_terminal_and_bytes_that_are_no_text_are_written_out() -> None:
    assert printable("a\x1b[31mb\r") == r"a\x1b[31mb\r"
    assert printable("émeu 鳥") == "émeu 鳥"
    name = os.fsdecode(b"._caf\xe9.png")
    assert few([name, "a", "b", "c"]).encode("utf-8") == rb"._caf\udce9.png, a, b and 1 more"
