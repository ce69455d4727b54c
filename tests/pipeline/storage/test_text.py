"""Text from outside: the encodings that are read, and what is said of the others."""

import codecs
import subprocess
from pathlib import Path

import pytest

from pipeline.storage.text import TextError, decode_text, read_text

TEXT = "chat\nchien\némeu 鳥\n"


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        TEXT.replace("\n", "\r\n").encode("utf-8-sig"),
        TEXT.replace("\n", "\r\n").encode("utf-16"),
        TEXT.replace("\n", "\r").encode(),
        "\ufeffchat\n\ufeffchien\némeu 鳥\n".encode(),
        "chat\r\n\ufeffchien\r\némeu 鳥\r\n".encode(),
    ],
)
def test_utf_with_a_mark_and_all_ends_of_lines_give_the_same_text(data: bytes) -> None:
    assert decode_text(data, "a.txt") == TEXT


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "chat\r\népée\r\n".encode("cp1252"),
            "a.txt:2: not a UTF-8 text: byte 6 of the file is 0xe9; if it is Windows-1252 (cp1252), the line is "
            "'épée': save the file as UTF-8, or: iconv -f CP1252 -t UTF-8 OLD > NEW",
        ),
        (
            codecs.BOM_UTF8 + b"cat\n\xe4\n",
            "a.txt:2: not a UTF-8 text: byte 7 of the file is 0xe4; if it is Windows-1252 (cp1252), the line is 'ä': ",
        ),
        ("猫\n".encode("shift_jis"), "a.txt:1: not a UTF-8 text: byte 0 of the file is 0x94; if it is Windows-1252"),
        (b"cat\n\x81\n", "byte 4 of the file is 0x81; save it as UTF-8 in the program that wrote it, or: iconv -f"),
        ("cat\ndog\n".encode("utf-16-le"), "byte 1 of the file is 0x00; if it is UTF-16LE without a byte order mark"),
        ("cat\ndog\n".encode("utf-16-be"), "byte 0 of the file is 0x00; if it is UTF-16BE without a byte order mark"),
        (b"cat\ndo\0g\n", "a.txt:2: not a UTF-8 text: byte 6 of the file is 0x00, which no text has"),
        (codecs.BOM_UTF16_LE + b"c", "a.txt: not a text of the utf-16 that its first bytes announce"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "a.txt:1: not a UTF-8 text: byte 0 of the file is 0x89"),
    ],
)
def test_other_bytes_are_refused_with_file_line_and_byte(data: bytes, message: str) -> None:
    with pytest.raises(TextError) as error:
        decode_text(data, "a.txt")
    assert message in str(error.value)


def test_a_text_that_was_converted_as_the_message_says_is_read(tmp_path: Path) -> None:
    (tmp_path / "OLD").write_bytes("épée\n".encode("cp1252"))
    with pytest.raises(TextError) as error:
        read_text(str(tmp_path / "OLD"), "OLD")
    subprocess.run(str(error.value).rpartition("or: ")[2], shell=True, cwd=tmp_path, check=True)
    assert read_text(str(tmp_path / "NEW"), "NEW") == "épée\n"
