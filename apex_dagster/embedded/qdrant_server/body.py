"""Decoding a request body: types are checked on the way in, at the speed of a plain JSON parser."""

from __future__ import annotations

import functools
from typing import TypeVar

import msgspec

from apex_dagster.embedded.qdrant_server.errors import BadInput, NotSupported


class Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of all requests."""


BodyT = TypeVar("BodyT", bound=Body)


@functools.cache
def decoder(kind: type[BodyT]) -> msgspec.json.Decoder[BodyT]:
    """Made once for each kind of request."""
    return msgspec.json.Decoder(kind)


def decode(content: bytes, kind: type[BodyT]) -> BodyT:
    """Parse `content` as `kind`; raises BadInput, or NotSupported for an unlisted field."""
    try:
        body: BodyT = decoder(kind).decode(content)
    except msgspec.ValidationError as error:
        unknown = str(error).removeprefix("Object contains unknown field ")
        if unknown != str(error):
            raise NotSupported(f"field {unknown}") from error
        raise BadInput(f"Format error in JSON body: {error}") from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadInput(f"Format error in JSON body: {error}") from error
    return body
