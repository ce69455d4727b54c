"""Reads the text files that people give: lists, class names, tables, key lists, task files, search spaces.

UTF-8 is read with or without a byte order mark, UTF-16 and UTF-32 with one. Lines may end as on Unix, Windows or an old
Mac. Other bytes are refused, because a guess at the encoding would change class names silently.
"""

import codecs

from pipeline.storage import files

# The mark of UTF-32 begins like that of UTF-16, so it goes first.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_MAX_SHOWN = 60


class TextError(ValueError):
    """A file that is no text. The message names file, line, byte and, if it can be told, the encoding."""


def read_text(uri: str, name: str) -> str:
    """A local or remote file's text, as `decode_text` gives it."""
    return decode_text(files.read_bytes(uri), name)


def decode_text(data: bytes, name: str) -> str:
    r"""A file's text without byte order marks; each line ends with ``\n``.

    Args:
        data: The whole file.
        name: Name of the file, for the error.

    Raises:
        TextError: The bytes are no such text.
    """
    encoding = next((encoding for mark, encoding in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise TextError(f"{name}: not a text of the {encoding} that its first bytes announce ({error})") from error
        raise TextError(_place(name, data, error.start) + _likely_encoding(data, error.start)) from error
    if encoding == "utf-8" and "\0" in text:
        raise TextError(_place(name, data, data.index(0)) + _likely_order(data))
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return f"\n{lines}".replace("\n\ufeff", "\n")[1:]  # files that were joined have a mark in the middle, too


def _place(name: str, data: bytes, byte: int) -> str:
    line = data.count(b"\n", 0, byte) + 1
    return f"{name}:{line}: not a UTF-8 text: byte {byte} of the file is 0x{data[byte]:02x}"


def _likely_encoding(data: bytes, byte: int) -> str:
    """What the faulty line would be in the encoding that files which are not UTF-8 mostly have, and what to do."""
    line = data[data.rfind(b"\n", 0, byte) + 1 :].partition(b"\n")[0].strip()
    try:
        shown = line.decode("cp1252")
    except UnicodeDecodeError:
        return f"; save it as UTF-8 in the program that wrote it, or: {_convert('ITS-ENCODING')}"
    shown = shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}..."
    return f"; if it is Windows-1252 (cp1252), the line is {shown!r}: save the file as UTF-8, or: {_convert('CP1252')}"


def _likely_order(data: bytes) -> str:
    """Which UTF-16 a file with zeros is: Latin letters have one each, in the first or in the second byte."""
    if data.count(0) * 3 < len(data):
        return ", which no text has"
    order = "UTF-16BE" if data[::2].count(0) > data[1::2].count(0) else "UTF-16LE"
    return f"; if it is {order} without a byte order mark, save the file as UTF-8, or: {_convert(order)}"


def _convert(encoding: str) -> str:
    return f"iconv -f {encoding} -t UTF-8 OLD > NEW"
