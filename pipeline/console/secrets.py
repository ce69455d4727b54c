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
_SCHEME = r"(?<![a-z0-9+.-])(?!(?:sqlite|file):///)(?P<scheme>[a-z0-9][a-z0-9+.-]*://)"
"""Where an address begins. The path of sqlite:/// or file:/// may hold any character."""
# A login ends at the last @ before the path. If what stands behind the host's : is no port, it ends at the last @ of
# all: people forget to write the / of a password as %2F.
_LOGIN = re.compile(
    _SCHEME + r"""(?P<login>[^\s/?#"<>]*@|[^\s/?#"'<>:\[]*:(?!\d*(?:[\s/?#"'<>,;)\]]|$))\S*@)""", re.IGNORECASE
)
_QUERY = re.compile(_SCHEME + r"""(?P<place>[^\s?#"'<>]*)\?(?!\.\.\.)(?P<query>[^\s#"'<>]+)""", re.IGNORECASE)
_SIGNATURE = re.compile(
    r"""(?<=[?&#])(?P<name>(?:[\w.-]*(?:signature|credential|token|password|secret)|sig)=)[^\s&#"'<>]+""", re.IGNORECASE
)
"""A secret by the name of its parameter. Libraries repeat the part of an address behind the host alone."""


def shown(text: str) -> str:
    """A text, such as an address or an error's message, without its secrets.

    ``http://user:password@host/path?signature=...`` becomes ``http://***@host/path?...``. Paths stay as they are.
    Showing a text twice changes nothing.
    """
    if "://" in text:
        text = _LOGIN.sub(rf"\g<scheme>{HIDDEN}@", text)
        text = _QUERY.sub(r"\g<scheme>\g<place>?...", text)
    text = _SIGNATURE.sub(rf"\g<name>{HIDDEN}", text)
    known = sorted(map(re.escape, _known()), key=len, reverse=True)
    return re.sub(rf"(?<!\w)(?:{'|'.join(known)})(?!\w)", HIDDEN, text) if known else text


def shown_refused(address: str) -> str:
    """An address that is refused, for the error that says so; ``***`` if it is unclear which part of it is a login.

    ``me:password@host`` lacks its scheme, and in ``http://me:1/2@host`` the host is ``me``.
    """
    text = shown(address)
    return HIDDEN if re.search(r"[@\s]", text.replace(f"://{HIDDEN}@", "")) else text


def shown_command(words: Sequence[str]) -> str:
    """A command line for people, without its secrets; where it lacks one, it says what to do about that."""
    text = shlex.join(map(shown, words))
    return f"{text}  ({_LOGIN_HINT})" if f"{HIDDEN}@" in text else text


def error_text(error: BaseException) -> str:
    """An error's message without secrets; the name of its type if it has no message."""
    return shown(str(error)) or type(error).__name__


def _known() -> set[str]:
    """The secrets in this process's environment and command line."""
    found = {value for name, value in os.environ.items() if _SECRET_SETTING.search(name)}
    for text in (*os.environ.values(), *sys.argv):
        for secret in _secrets_of(text) if "://" in text else ():
            found |= {secret, unquote(secret)}
    return {secret for secret in found if len(secret) >= LEAST_CHARACTERS}


def _secrets_of(text: str) -> Iterator[str]:
    """The passwords and queries of the addresses in a text, as they are written there."""
    for address in _LOGIN.finditer(text):
        user, colon, password = address["login"].removesuffix("@").partition(":")
        if colon or address["scheme"].lower().startswith("http"):  # ssh://git@host: a name alone is no secret
            yield password if colon else user
    for address in _QUERY.finditer(text):
        yield address["query"]
