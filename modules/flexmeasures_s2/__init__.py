"""S2 (EN 50491-12-2) over websocket, as a Customer Energy Manager: messages, session, listener.

Knows nothing of FlexMeasures or Home Assistant.
"""
