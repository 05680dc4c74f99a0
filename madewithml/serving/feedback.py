"""True labels that callers tell afterwards, kept in a database.

    POST /feedback/ {"request_id", "row", "label"} -> one entry for each request and row; the last word counts
    GET /feedback/?after=N -> entries in the order of their coming

Telling the same twice changes nothing, so a call may be sent again. No text is kept, only the id of the request.
"""

from __future__ import annotations

import contextlib
import datetime
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pydantic

from madewithml import errors
from madewithml.serving import identity

if TYPE_CHECKING:
    import sqlalchemy

LOOKED_UP_AT_ONCE = 500
RETRY_AFTER_S = 5.0


def _whole(value: Any) -> Any:
    """2.0 is 2: JSON knows one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Given(pydantic.BaseModel):
    """A true label.

    Attributes:
        request_id: Of the answer.
        row: Where the row stood in its call, from 0.
        label: The true one.
    """

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)

    request_id: Annotated[str, pydantic.StringConstraints(pattern=f"^{identity.SANE.pattern}$")]
    row: Annotated[int, pydantic.Field(ge=0, lt=2**31), pydantic.BeforeValidator(_whole)] = 0
    label: str


_GIVEN: pydantic.TypeAdapter[Given | list[Given]] = pydantic.TypeAdapter(Given | list[Given])


def parse(body: bytes, *, classes: Sequence[str], max_rows: int) -> list[Given]:
    """What a body says.

    Args:
        body: JSON: one object or a list of them.
        classes: Labels that there are.
        max_rows: In one call.

    Raises:
        MalformedBodyError: It is not JSON.
        InvalidRequestError: It is something else, an unknown label, or too much.
    """
    try:
        found = _GIVEN.validate_json(body)
    except pydantic.ValidationError as err:
        faults = [_fault(fault) for fault in err.errors(include_url=False, include_context=False)]
        if any(fault["type"] == "json_invalid" for fault in err.errors()):
            raise errors.MalformedBodyError(f"the body is not JSON: {faults[0]['message']}") from err
        msg = 'expected {"request_id": ID, "row": NUMBER, "label": LABEL}, or a list of these'
        raise errors.InvalidRequestError(msg, errors=faults[:10]) from err
    given = found if isinstance(found, list) else [found]
    if not 1 <= len(given) <= max_rows:
        raise errors.InvalidRequestError(f"{len(given)} labels in one call: from 1 to {max_rows} are allowed")
    unknown = [i for i, each in enumerate(given) if each.label not in classes]
    if unknown:
        faults = [{"location": [i, "label"], "message": "the model knows no such label"} for i in unknown[:10]]
        raise errors.InvalidRequestError(f"unknown label; there are {', '.join(classes)}", errors=faults)
    return given


def _fault(fault: Any) -> dict[str, Any]:
    location = [part for part in fault["loc"] if part not in ("Given", "list[Given]")]
    return {"location": location, "message": fault["msg"]}


class Feedback:
    """The entries, in any database that SQLAlchemy speaks to. Threads may share it.

    Args:
        uri: SQLAlchemy's address of the database.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._opened: tuple[sqlalchemy.Engine, sqlalchemy.Table] | None = None
        self._lock = threading.Lock()

    def put(self, given: Sequence[Given], caller: str) -> None:
        """Keep entries; one for the same request and row is replaced.

        Args:
            given: What was told.
            caller: Name of the key that told it.

        Raises:
            NotReadyError: The database cannot be written to.
        """
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        with self._connected(to="kept") as (connection, table):
            for each in given:
                values = {"label": each.label, "caller": caller, "at": now}
                where = (table.c.request_id == each.request_id) & (table.c.row == each.row)
                if not connection.execute(table.update().where(where).values(values)).rowcount:
                    new = {"request_id": each.request_id, "row": each.row, **values}
                    connection.execute(table.insert().values(new))

    def page(self, after: int, limit: int) -> list[dict[str, Any]]:
        """Entries in the order of their coming.

        Args:
            after: Number of the last entry that is known already; 0 for the beginning.
            limit: At most so many.

        Raises:
            NotReadyError: The database cannot be read.
        """
        with self._connected(to="read") as (connection, table):
            query = table.select().where(table.c.number > after).order_by(table.c.number).limit(limit)
            return [{str(name): value for name, value in row._mapping.items()} for row in connection.execute(query)]

    def labels(self, request_ids: Iterable[str]) -> dict[tuple[str, int], str]:
        """True labels of these requests' rows, as far as they were told.

        Raises:
            NotReadyError: The database cannot be read.
        """
        wanted = sorted(set(request_ids))
        found: dict[tuple[str, int], str] = {}
        with self._connected(to="read") as (connection, table):
            for first in range(0, len(wanted), LOOKED_UP_AT_ONCE):
                some = wanted[first : first + LOOKED_UP_AT_ONCE]
                rows = connection.execute(table.select().where(table.c.request_id.in_(some)))
                found |= {(row.request_id, row.row): row.label for row in rows}
        return found

    @contextlib.contextmanager
    def _connected(self, *, to: str) -> Iterator[tuple[sqlalchemy.Connection, sqlalchemy.Table]]:
        """A transaction; what goes wrong with the database is told without its words."""
        import sqlalchemy

        try:
            engine, table = self._open()
            with engine.begin() as connection:
                yield connection, table
        except sqlalchemy.exc.SQLAlchemyError as err:
            msg = f"feedback cannot be {to} at the moment: try again later"
            raise errors.NotReadyError(msg, retry_after_s=RETRY_AFTER_S) from err

    def _open(self) -> tuple[sqlalchemy.Engine, sqlalchemy.Table]:
        """The database, opened when it is first needed: most replicas never do, and SQLAlchemy takes its time."""
        import sqlalchemy

        with self._lock:
            if self._opened is None:
                _make_folder(sqlalchemy.make_url(self._uri))
                engine = sqlalchemy.create_engine(self._uri, pool_pre_ping=True)
                table = sqlalchemy.Table(
                    "feedback",
                    sqlalchemy.MetaData(),
                    sqlalchemy.Column("number", sqlalchemy.Integer, primary_key=True, autoincrement=True),
                    sqlalchemy.Column("request_id", sqlalchemy.String(64), nullable=False),
                    sqlalchemy.Column("row", sqlalchemy.Integer, nullable=False),
                    sqlalchemy.Column("label", sqlalchemy.Text, nullable=False),
                    sqlalchemy.Column("caller", sqlalchemy.String(64), nullable=False),
                    sqlalchemy.Column("at", sqlalchemy.String(32), nullable=False),
                    sqlalchemy.UniqueConstraint("request_id", "row"),
                )
                table.metadata.create_all(engine)
                self._opened = engine, table
            return self._opened


def _make_folder(url: sqlalchemy.URL) -> None:
    """The folder of an SQLite file; where it cannot be made, opening the file says so."""
    if url.get_backend_name() == "sqlite" and url.database:
        with contextlib.suppress(OSError):
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
