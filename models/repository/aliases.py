"""Names for models: read, switched under a version, and resolved wherever a model is asked for."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Literal

from sqlalchemy import ColumnElement, delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from limbeck.errors import InvalidInput, NotFound, Problem, Stale
from models.alias import Alias
from models.base import db_now
from models.model import Model

#: The version that a caller has seen, or that there is one; None where it does not matter.
Expected = int | Literal["any"] | None

#: Below it an alias begins to count its switches. Were it always from 1, whoever has seen an alias that was deleted and
#: made again would switch one that it has never seen.
_FIRST = 10**8

#: Not like an id, so that a name never hides a model.
_NAME = re.compile(r"(?!mdl_)[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_name(name: str) -> None:
    """Raises InvalidInput where ``name`` cannot be an alias."""
    if not _NAME.fullmatch(name):
        allowed = "letters, digits, '.', '_' and '-', at most 64, not beginning with 'mdl_'"
        raise InvalidInput(f"An alias cannot be called {name!r}; allowed: {allowed}.", [Problem("/name", allowed)])


def get_alias(session: Session, name: str) -> Alias:
    """Raises NotFound where there is none of this name."""
    alias = session.get(Alias, name)
    if alias is None:
        raise NotFound(f"There is no alias {name!r}.")
    return alias


def list_aliases(session: Session) -> Sequence[Alias]:
    """All of them, by name."""
    return session.scalars(select(Alias).order_by(Alias.name)).all()


def aliases_of(session: Session, model_id: str) -> list[str]:
    """The names that stand for a model."""
    return list(session.scalars(select(Alias.name).where(Alias.model_id == model_id).order_by(Alias.name)))


def resolve(session: Session, name: str) -> str:
    """The id of the model that ``name``, an id or an alias, means; an unknown name is given back."""
    if name.startswith("mdl_"):
        return name
    return session.scalar(select(Alias.model_id).where(Alias.name == name)) or name


def put_alias(session: Session, name: str, model_id: str, *, expected: Expected = None) -> Alias:
    """Let ``name`` stand for a model from now on.

    Args:
        model_id: not an alias.
        expected: 0 says that there is no such alias yet; without it whatever stands there is replaced.

    Raises:
        InvalidInput: no alias may be called so.
        NotFound: there is no such model, any more.
        Stale: the alias is not as expected by now.
    """
    check_name(name)
    # Held until the commit, so that nobody deletes it meanwhile.
    if session.scalar(select(Model.id).where(Model.id == model_id).with_for_update(read=True)) is None:
        raise NotFound(f"There is no model {model_id!r}.")
    switched = _switch(session, name, model_id, expected) or _make(session, name, model_id, expected)
    # Where somebody else made it in this moment, and no version was expected, that one is replaced.
    switched = switched or _switch(session, name, model_id, expected)
    if switched is None:
        raise _stale(session, name, expected)
    return switched


def _switch(session: Session, name: str, model_id: str, expected: Expected) -> Alias | None:
    """The alias, if there is one as it is expected."""
    query = update(Alias).where(Alias.name == name, *_as_expected(expected))
    query = query.values(model_id=model_id, updated_at=db_now(), version=Alias.version + 1)
    return session.scalars(query.returning(Alias), execution_options={"populate_existing": True}).one_or_none()


def _make(session: Session, name: str, model_id: str, expected: Expected) -> Alias | None:
    """A new alias, if none is expected and there is none."""
    if expected not in (None, 0):
        return None
    values = {"name": name, "model_id": model_id, "updated_at": db_now(), "version": 1 + secrets.randbelow(_FIRST)}
    try:
        with session.begin_nested():
            return session.scalars(insert(Alias).values(**values).returning(Alias)).one()
    except IntegrityError:
        return None


def delete_alias(session: Session, name: str, *, expected: Expected = None) -> None:
    """Delete the name; the model stays.

    Raises:
        NotFound: there is none of this name.
        Stale: the alias is not as expected by now.
    """
    query = delete(Alias).where(Alias.name == name, *_as_expected(expected))
    if session.scalars(query.returning(Alias.name)).one_or_none() is None:
        if _version(session, name) is not None:
            raise _stale(session, name, expected)
        raise NotFound(f"There is no alias {name!r}.")


def _as_expected(expected: Expected) -> list[ColumnElement[bool]]:
    return [Alias.version == expected] if isinstance(expected, int) else []


def _version(session: Session, name: str) -> int | None:
    return session.scalar(select(Alias.version).where(Alias.name == name))


def _stale(session: Session, name: str, expected: Expected) -> Stale:
    found = _version(session, name)
    if found is None:
        return Stale(f"There is no alias {name!r}, any more or yet.")
    return Stale(f"The alias {name!r} has version {found}, not {expected}: somebody switched it meanwhile.")
