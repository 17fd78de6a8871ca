"""Check tokens of the Hub, and make the headers that send them; huggingface_hub's rules and variables hold."""

from __future__ import annotations

from laion_face_builder.errors import OptionError

#: Text: this token. None: that of HF_TOKEN or `hf auth login`, if any. False: none. True: as None, but required.
Token = str | bool | None

_GIVE = "`hf auth login`, the variable HF_TOKEN, or token=…"


def checked_token(token: object) -> Token:
    """Return the token without blanks around it.

    Raises:
        OptionError: nothing that could be one, or True and none is stored. It never says what was given.
    """
    if token is True:
        from huggingface_hub import get_token

        if get_token() is None:
            raise OptionError("token=True: there is no stored token; give one with `hf auth login` or HF_TOKEN")
    if token is None or isinstance(token, bool):
        return token
    if not isinstance(token, str):
        raise OptionError(f"token: found {type(token).__name__}, expected text, True, False or None")
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        found = "blanks or letters that no token has" if token else "nothing"
        raise OptionError(f"token: found {found} in it, expected one such as hf_…: {_GIVE}")
    return token


def secret_headers(token: Token) -> dict[str, str]:
    """Return the headers of a request to the Hub itself; {} if no token is to be sent, or there is none."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # it is documented

    sent = build_hf_headers(token=token).get("authorization")
    return {"Authorization": sent} if sent else {}
