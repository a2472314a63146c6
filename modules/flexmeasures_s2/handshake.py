"""The entry to a session over a plain websocket: Handshake, HandshakeResponse."""

import flexmeasures_s2.errors as errors
import flexmeasures_s2.session as sessions

SUPPORTED = ("1.0.0", "0.0.2-beta")
"""Protocol versions, the best first: the same messages under both names."""


@pyscript_compile
async def enter(session):
    """Send our Handshake at once; the session then waits for the other one."""
    session.entry = take
    await sessions.send(session, "Handshake", role="CEM", supported_protocol_versions=[*SUPPORTED])


@pyscript_compile
def take(session, message):
    """Take the Resource Manager's Handshake, and answer with the version chosen from its list.

    Where none fits, say so, and close.
    """
    if message.role.value != "RM":
        raise errors.InvalidContent("role: expected RM: a CEM speaks here")
    theirs = message.supported_protocol_versions or []
    version = choose(theirs)
    if version is None:
        raise errors.NoCommonVersion(
            f"supported_protocol_versions: this CEM speaks {' and '.join(SUPPORTED)}, not "
            f"{', '.join(theirs) or 'what was left out'}"
        )

    async def respond():
        session.version, session.stage = version, sessions.DETAILS
        await sessions.send(session, "HandshakeResponse", selected_protocol_version=version)

    return sessions.Taken(then=respond)


@pyscript_compile
def choose(theirs):
    """Return the best version of the other's list, as it is written there; a leading v does not count."""
    plain = {version.removeprefix("v"): version for version in theirs}
    return next((plain[version] for version in SUPPORTED if version in plain), None)
