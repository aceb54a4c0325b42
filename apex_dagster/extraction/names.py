"""Names as they stand in a text: what belongs to one, and what kind of thing it names."""

from __future__ import annotations

import re

# Dates, amounts, nationalities and languages are left out: as nodes they would join documents
# that have nothing to do with each other.
TYPES = {
    "PERSON": "person",
    "ORG": "organization",
    "GPE": "place",
    "LOC": "place",
    "FAC": "place",
    "PRODUCT": "product",
    "EVENT": "event",
    "LAW": "law",
    "WORK_OF_ART": "work",
}
NOT_PART_OF_A_NAME = re.compile(  # before it
    r"(?:the|an?|mr|mrs|ms|miss|dr|prof|professor|sir|dame|lord|lady|capt|captain|commander"
    r"|inspector|judge|senator|president|minister|mayor|chairman|chairwoman)\.?",
    re.IGNORECASE,
)
LEGAL_FORM = re.compile(  # after it
    r"(?:inc|incorporated|corp|corporation|ltd|limited|llc|llp|plc|gmbh|ag|sa|nv|bv|oy|ab|asa)[.,]*",
    re.IGNORECASE,
)
# The small model gives one name several types; these words settle it.
ORGANIZATION = re.compile(
    r".+ (?:academy|agency|airlines|airways|analytics|association|authority|bank|biotech|brothers"
    r"|committee|company|council|department|energy|engineering|foundation|fund|gazette|group"
    r"|holdings|hospital|industries|institute|insurance|laboratories|laboratory|labs|ministry"
    r"|museum|partners|pharmaceuticals|press|robotics|school|shipping|shipyard|society|software"
    r"|solutions|systems|technologies|times|trust|union|university)|(?:bank|university) of .+",
    re.IGNORECASE,
)
PLACE = re.compile(
    r".+ (?:bay|beach|canal|coast|county|forest|harbor|harbour|hill|hills|island|islands|lake"
    r"|mountain|mountains|ocean|peninsula|river|sea|square|strait|street|valley)"
    r"|(?:cape|fort|lake|mount|port|isle of) .+",
    re.IGNORECASE,
)
NAME_CHARS_MAX = 120


def settled_type(name: str) -> str | None:
    """The type that a name's own words leave no doubt about."""
    if ORGANIZATION.fullmatch(name):
        return "organization"
    return "place" if PLACE.fullmatch(name) else None


def clean(text: str) -> str:
    words = (
        re.sub(r"['’]s$|(?<=s)['’]$", "", text).strip(" \t\"'“”‘’.,;:!?()[]{}<>*_-–—/\\|#").split()
    )
    while words and NOT_PART_OF_A_NAME.fullmatch(words[0]):
        del words[0]
    return " ".join(words)


def without_legal_form(name: str) -> str:
    words = name.split()
    while len(words) > 1 and LEGAL_FORM.fullmatch(words[-1]):
        del words[-1]
    return " ".join(words).rstrip(",")


def is_name(text: str) -> bool:
    """Whether it can stand as a node: letters, a capital, no address or code."""
    return (
        1 < len(text) <= NAME_CHARS_MAX
        and any(character.isupper() for character in text)
        and not re.search(r"[@=\\{}<>]|://|\d{4,}", text)
    )
