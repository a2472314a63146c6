"""The entry to a session over a plain websocket: Handshake, HandshakeResponse."""

from collections.abc import Sequence

from s2python.common import Handshake

import flexmeasures_s2.errors as errors
import flexmeasures_s2.session as sessions

SUPPORTED_VERSIONS = ("1.0.0", "0.0.2-beta")
"""Protocol versions, the best first; their messages are the same."""


@pyscript_compile
async def begin(session: sessions.Session) -> None:
    """Send the Handshake of the CEM; the session then waits for that of the Resource Manager."""
    session.on_handshake = on_handshake
    await session.send("Handshake", role="CEM", supported_protocol_versions=[*SUPPORTED_VERSIONS])


@pyscript_compile
def on_handshake(session: sessions.Session, message: Handshake) -> sessions.Accepted:
    """Answer the Resource Manager's Handshake with the version selected; raise NoCommonVersion."""
    if message.role.value != "RM":
        raise errors.InvalidContent(f"role: expected RM, since this is a CEM, got {message.role.value}")
    offered = message.supported_protocol_versions or []
    version = select_version(offered)
    if version is None:
        raise errors.NoCommonVersion(
            f"supported_protocol_versions: this CEM supports {' and '.join(SUPPORTED_VERSIONS)}, got "
            f"{', '.join(offered) or 'none'}"
        )

    async def respond() -> None:
        session.version, session.stage = version, sessions.DETAILS
        await session.send("HandshakeResponse", selected_protocol_version=version)

    return sessions.Accepted(then=respond)


@pyscript_compile
def select_version(offered: Sequence[str]) -> str | None:
    """Return the best version that is offered, spelled as there, or None; a leading v does not count."""
    spelled = {version.removeprefix("v"): version for version in offered}
    return next((spelled[version] for version in SUPPORTED_VERSIONS if version in spelled), None)
