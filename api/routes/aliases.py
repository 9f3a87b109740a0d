"""Aliases: names for whatever student answers under them, switched without a request that fails."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Body, Header, Response

from api import examples, pages
from api.deps import House
from api.openapi import answers
from api.schemas import AliasRequest, AliasView, Listing
from limbeck.errors import InvalidInput, Problem, Stale
from models.repository import aliases, catalogue
from models.text import refuse_unstorable

router = APIRouter(prefix="/v1/aliases", tags=["models"], dependencies=pages.STRICT)

_ETAG = re.compile(r'"(\d+)"', re.ASCII)
#: Longer numbers than these are no version of ours, and no database's number.
_DIGITS = 9
_IF_MATCH = Header(description="The ETag that was seen; 412 when it is another by now. `*`: only where there is one.")


@router.get(
    "", summary="List aliases", responses=answers(422, 503, ok=(Listing[AliasView], examples.listing(examples.ALIAS)))
)
def list_aliases(house: House) -> Listing[AliasView]:
    """All of them, by name."""
    with house.database.reading() as session:
        return Listing[AliasView](data=[AliasView.of(alias) for alias in aliases.list_aliases(session)])


@router.get("/{name}", summary="Look at an alias", responses=answers(404, 503, ok=(AliasView, examples.ALIAS)))
def get_alias(house: House, name: str, response: Response) -> AliasView:
    """Which model it means now; the ETag is for `If-Match`."""
    with house.database.reading() as session:
        view = AliasView.of(aliases.get_alias(session, name))
    response.headers["ETag"] = f'"{view.version}"'
    return view


@router.put(
    "/{name}",
    summary="Let an alias mean a model",
    responses=answers(404, 409, 412, 422, 503, ok=(AliasView, examples.ALIAS)),
)
def put_alias(
    house: House,
    name: str,
    wanted: Annotated[AliasRequest, Body(openapi_examples=examples.ALIAS_REQUESTS)],
    response: Response,
    if_match: Annotated[str | None, _IF_MATCH] = None,
    if_none_match: Annotated[str | None, Header(description="`*`: only where there is no such alias yet.")] = None,
) -> AliasView:
    """Made, or switched. The student is loaded before anybody is sent to it, and the one before answers until then.

    Other API processes follow within two seconds.
    """
    expected = _expected(if_match, if_none_match)
    aliases.check_name(name)
    refuse_unstorable({"model": wanted.model})
    with house.database.reading() as session:
        model_id = catalogue.get_model(session, wanted.model).id  # it may be named by another alias
        files = catalogue.model_files(session, model_id)
    house.students.get(model_id, files)
    with house.database.session() as session:
        view = AliasView.of(aliases.put_alias(session, name, model_id, expected=expected))
    house.students.forget_name(name)
    response.headers["ETag"] = f'"{view.version}"'
    return view


@router.delete("/{name}", status_code=204, summary="Delete an alias", responses=answers(404, 412, 422, 503))
def delete_alias(house: House, name: str, if_match: Annotated[str | None, _IF_MATCH] = None) -> None:
    """The model that it means stays."""
    expected = _expected(if_match)
    with house.database.session() as session:
        aliases.delete_alias(session, name, expected=expected)
    house.students.forget_name(name)


def _expected(if_match: str | None, if_none_match: str | None = None) -> aliases.Expected:
    if if_none_match is not None:
        if if_none_match.strip() != "*" or if_match is not None:
            raise _refused("If-None-Match", f"found {if_none_match!r}; allowed: * alone, without If-Match")
        return 0
    if if_match is None:
        return None
    if if_match.strip() == "*":
        return "any"
    found = _ETAG.fullmatch(if_match.strip())
    if found is None:
        raise _refused("If-Match", f'found {if_match!r}; allowed: the ETag of a GET, such as "3"')
    # To the repository 0 says that there is none yet; whoever sends it as an ETag has not seen that.
    if len(found[1]) > _DIGITS or int(found[1]) == 0:
        raise Stale(f"The alias never had version {found[1]}.")
    return int(found[1])


def _refused(header: str, detail: str) -> InvalidInput:
    return InvalidInput(f"{header}: {detail}", [Problem(f"/{header}", detail)])
