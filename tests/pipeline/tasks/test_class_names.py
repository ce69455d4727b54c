"""The rule for names of classes."""

import unicodedata

import pytest

from pipeline.tasks.class_names import alike_faults, class_name, name_faults

NFC = "\N{LATIN SMALL LETTER E WITH ACUTE}meu"
NFD = unicodedata.normalize("NFD", NFC)


def test_a_name_is_kept_without_space_around_it_and_composed() -> None:
    assert class_name(" great tit\t") == "great tit"
    assert class_name(NFD) == class_name(NFC) == NFC


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat", "dog", "cat"), "l:3: 'cat' (b'cat') and 'cat' (b'cat', l:1) are the same class"),
        (("cat", "cat "), "l:2: 'cat ' (b'cat ') and 'cat' (b'cat', l:1) are the same class"),
        ((NFC, NFD), r"(b'e\xcc\x81meu') and 'émeu' (b'\xc3\xa9meu', l:1) are the same class"),
        (("Cat", "cat"), "l:2: 'cat' (b'cat') and 'Cat' (b'Cat', l:1) differ by case alone; give one class one name"),
        (("STRASSE", "straße"), "differ by case alone"),
        (("1", "01"), "l:2: '01' (b'01') and '1' (b'1', l:1) differ by leading zeros alone"),
        (("class 7", "class 007"), "differ by leading zeros alone"),
        (("Class 7", "class  07"), "differ by case, leading zeros, white space or invisible characters alone"),
        (("cat", "\ufeffcat"), r"(b'\xef\xbb\xbfcat') and 'cat' (b'cat', l:1) differ by case, leading zeros, white"),
        (("cat", "  "), "l:2: empty, expected a class name"),
        (("cat", "caf\udce9"), r"l:2: b'caf\xe9' is not UTF-8; rename it"),
    ],
)
def test_names_that_are_equal_or_look_alike_are_shown_with_their_bytes(names: tuple[str, ...], message: str) -> None:
    (fault,) = name_faults([(f"l:{number}", name) for number, name in enumerate(names, 1)])
    assert message in fault


def test_names_that_differ_for_a_reader_are_no_fault() -> None:
    names = ["0", "1", "10", "100", "0.5", "0.05", "1,5", "1,05", "a1", "a10", "cat", "cats", "great tit", "great-tit"]
    assert name_faults([("l", name) for name in names]) == []


def test_a_class_that_two_splits_name_is_one_class() -> None:
    assert alike_faults([("train", NFC), ("val", NFD), ("test", f"{NFC} ")]) == []
    (fault,) = alike_faults([("train", "cat"), ("val", "Cat"), ("test", "Cat")])
    assert fault.startswith("val: 'Cat'")
