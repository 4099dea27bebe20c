"""The language of a text as ISO 639-1: by a stated name or code, else detected.

Names are English, as in Project Gutenberg's headers; codes are ISO 639-1, 639-2 (both kinds) or BCP 47, as in the
metadata of an EPUB. A stated language without a two-letter code ("Old English") counts as not stated.
Cost: 0.1 ms for a detection.
"""

from __future__ import annotations

import functools
import re

_TABLE = """
af afr Afrikaans|ar ara Arabic|bg bul Bulgarian|bn ben Bengali|br bre Breton|bo tib bod Tibetan|ca cat Catalan
cs cze ces Czech|cy wel cym Welsh|da dan Danish|de ger deu German|el gre ell Greek|en eng English|eo epo Esperanto
es spa Spanish Castilian|et est Estonian|eu baq eus Basque|fa per fas Persian Farsi|fi fin Finnish|fr fre fra French
fy fry Frisian|ga gle Irish Gaelic|gd gla Scottish_Gaelic|gl glg Galician|gu guj Gujarati|he heb Hebrew|hi hin Hindi
hr hrv Croatian|hu hun Hungarian|hy arm hye Armenian|ia ina Interlingua|id ind Indonesian|io ido Ido
is ice isl Icelandic|it ita Italian|iu iku Inuktitut|ja jpn Japanese|ka geo kat Georgian|km khm Khmer|ko kor Korean
la lat Latin|lt lit Lithuanian|lv lav Latvian|mi mao mri Maori|mk mac mkd Macedonian|ml mal Malayalam|mr mar Marathi
ms may msa Malay|my bur mya Burmese|nb nob Norwegian_Bokmål|ne nep Nepali|nl dut nld Dutch Flemish|nn nno Nynorsk
no nor Norwegian|nv nav Navajo|oc oci Occitan Provençal|oj oji Ojibwa Ojibwe|pa pan Punjabi|pl pol Polish
pt por Portuguese|ro rum ron Romanian|ru rus Russian|sa san Sanskrit|si sin Sinhala|sk slo slk Slovak|sl slv Slovenian
sq alb sqi Albanian|sr srp Serbian|sv swe Swedish|sw swa Swahili|ta tam Tamil|te tel Telugu|th tha Thai
tl tgl Tagalog Filipino|tr tur Turkish|uk ukr Ukrainian|ur urd Urdu|vi vie Vietnamese|yi yid Yiddish|zh chi zho Chinese
"""
_BETWEEN = re.compile(r"\s*(?:[,;/&\n]|\band\b|\bwith\b)\s*", re.IGNORECASE)
_NOTE = re.compile(r"\s*\([^()]*\)")
_MAX_RANK = 1200  # of detect_fast: a greater rank is "usually a false result" by its documentation
_DETECTED_CHARS = 20_000  # start of a text, which is enough for its language


def language_code(names: str) -> str:
    """Return the ISO 639-1 code of the first known language in `names` ("English and French" gives "en"), or ""."""
    known = _codes()
    for name in _BETWEEN.split(_NOTE.sub("", names)):
        folded = name.strip(" .\t\n").casefold()
        code = known.get(folded) or known.get(re.split("[-_]", folded)[0])
        if code:
            return code
    return ""


@functools.cache
def _codes() -> dict[str, str]:
    entries = [entry.split() for line in _TABLE.split("\n") for entry in line.split("|") if entry]
    return {name.replace("_", " ").casefold(): entry[0] for entry in entries for name in entry}


def detect_language(text: str) -> str:
    """Return the likeliest language of a text as ISO 639-1, by resiliparse (offline); "" for too short a text."""
    from resiliparse.parse.lang import detect_fast

    code, _ = detect_fast(text[:_DETECTED_CHARS], cutoff=_MAX_RANK)
    return "" if code == "unknown" else str(code)
