"""`pgcli verify`: every method's own loss, against exact enumeration.

One module a topic, each with `checks() -> Iterator[Check]`; `TOPICS` names them in the order they are told.
"""
