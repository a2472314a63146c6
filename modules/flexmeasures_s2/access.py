"""Who may connect: tokens in the Authorization header, and web pages of other sites."""

import base64
import hmac
import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit


@pyscript_compile
def token_in(authorization: str) -> bytes:
    """Return the token in an Authorization header, or b"" if there is none.

    It is a bearer token (RFC 6750), or the password of Basic authentication (RFC 7617).
    """
    scheme, _space, credentials = authorization.encode(errors="replace").strip().partition(b" ")
    if scheme.lower() == b"bearer":
        return credentials.strip()
    if scheme.lower() != b"basic":
        return b""
    try:
        _user, _colon, password = base64.b64decode(credentials.strip(), validate=True).partition(b":")
    except ValueError:
        return b""
    return password


@pyscript_compile
def is_token(given: bytes, token: str) -> bool:
    """Return whether a token was given, compared in constant time."""
    return hmac.compare_digest(given, token.encode())


@pyscript_compile
def holder_of(given: bytes, tokens: Mapping[str, str]) -> str | None:
    """Return the name or resource_id of the resource whose own token was given, or None."""
    holders = [name for name, token in tokens.items() if is_token(given, token)]
    return holders[0] if holders else None


@pyscript_compile
def is_cross_origin(origin: str | None, host: str) -> bool:
    """Return whether a web page of another site connects: its Origin is not the Host that it connects to.

    Some websocket clients send their own address as Origin. A name other than localhost counts as another
    site, since whoever owns it decides where it leads.
    """
    if origin is None:
        return False
    try:
        parts = urlsplit(origin)
        is_address = parts.hostname == "localhost" or bool(ipaddress.ip_address(parts.hostname or ""))
    except ValueError:
        return True
    return not is_address or parts.netloc != host
