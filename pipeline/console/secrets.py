"""Hides passwords, keys and tokens in every text that is printed or recorded.

An address may hold a login (``http://user:password@host``) or, in its query, a signature. `shown` hides both wherever
they stand in a text, so that it also takes the messages of libraries. It hides the secrets that this process was given,
too, since a library may repeat a password without its address.
"""

import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from urllib.parse import unquote

HIDDEN = "***"
LEAST_CHARACTERS = 6
"""A shorter secret is hidden in addresses alone: elsewhere it may be part of any sentence."""
_LOGIN_HINT = f"{HIDDEN} is hidden: leave it out, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
_SECRET_SETTING = re.compile(r"(PASSWORD|SECRET|SECRET_ACCESS_KEY|TOKEN)$")
# The path of sqlite:/// or file:/// may hold any character. A login ends at the last @ before the path. If what stands
# behind the host's : is no port, it ends at the last @ of all: people forget to write the / of a password as %2F.
_ADDRESS = re.compile(
    r"""
    \b(?!(?:sqlite|file):///) (?P<scheme>[a-z][a-z0-9+.-]*://)
    (?P<login> [^\s/?\#"<>]*@ | [^\s/?\#"'<>:\[]*:(?!\d*(?:[\s/?\#"'<>,;)\]]|$))\S*@ )?
    (?P<place> [^\s?\#"'<>]*)
    (?P<query> \?(?!\.\.\.)[^\s\#"'<>]+)?
    """,
    re.VERBOSE | re.IGNORECASE,
)


def shown(text: str) -> str:
    """A text, such as an address or an error's message, without its secrets.

    ``http://user:password@host/path?signature=...`` becomes ``http://***@host/path?...``. Paths stay as they are.
    Showing a text twice changes nothing.
    """
    text = _ADDRESS.sub(_masked, text) if "://" in text else text
    known = sorted(map(re.escape, _known()), key=len, reverse=True)
    return re.sub(rf"(?<!\w)(?:{'|'.join(known)})(?!\w)", HIDDEN, text) if known else text


def has_login(address: str) -> bool:
    """Whether an address holds a user's name, a password or a key."""
    found = _ADDRESS.match(address)
    return found is not None and found["login"] is not None


def shown_command(words: Sequence[str]) -> str:
    """A command line for people, without its secrets; where it lacks one, it says what to do about that."""
    text = shlex.join(map(shown, words))
    return f"{text}  ({_LOGIN_HINT})" if f"{HIDDEN}@" in text else text


def error_text(error: BaseException) -> str:
    """An error's message without secrets; the name of its type if it has no message."""
    return shown(str(error)) or type(error).__name__


def _masked(address: re.Match[str]) -> str:
    login = "" if address["login"] is None else f"{HIDDEN}@"
    return f"{address['scheme']}{login}{address['place']}{'' if address['query'] is None else '?...'}"


def _known() -> set[str]:
    """The secrets in this process's environment and command line."""
    found = {value for name, value in os.environ.items() if _SECRET_SETTING.search(name)}
    for text in (*os.environ.values(), *sys.argv):
        for address in _ADDRESS.finditer(text) if "://" in text else ():
            found.update(_secrets_of(address))
    return {secret for secret in found if len(secret) >= LEAST_CHARACTERS}


def _secrets_of(address: re.Match[str]) -> Iterator[str]:
    """The password of an address and its query, as they are written and as they are meant."""
    user, colon, password = (address["login"] or "").removesuffix("@").partition(":")
    for secret in (password if colon else user, (address["query"] or "").removeprefix("?")):
        yield from (secret, unquote(secret))
