"""Fonts that come with Python packages, the scripts they write, and real words of those scripts.

DejaVu (matplotlib), Noto and Hind (fontpkg-...) and Nanum (koreanize-matplotlib) may be redistributed (Bitstream Vera
licence, SIL OFL); words are names of places, languages and currencies out of Unicode's CLDR (Babel; Unicode licence).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

from megatron_qwen3vl.recipes.materials import package_folder

DEJAVU = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono")


@dataclass(frozen=True)
class Script:
    """``name``: as Unicode names its letters. ``locales``: whose words are taken. ``shaped``: letters join, stack or
    run from right to left, so drawing needs more than one glyph after another."""

    name: str
    locales: tuple[str, ...]
    module: str  # the Python package with its fonts
    folder: str
    faces: tuple[str, ...]
    package: str  # as pip calls it
    shaped: bool = False
    leftwards: bool = False


def _dejavu(name: str, locales: Sequence[str], faces: Sequence[str], shaped: bool = False, rtl: bool = False) -> Script:
    return Script(name, tuple(locales), "matplotlib", "mpl-data/fonts/ttf", tuple(faces), "matplotlib", shaped, rtl)


def _fontpkg(name: str, locales: Sequence[str], family: str, face: str, shaped: bool = True) -> Script:
    module = "fontpkg_" + family.replace("-", "_")
    return Script(name, tuple(locales), module, "files", (face,), f"fontpkg-{family}", shaped)


_SANS = DEJAVU[:2]
_LIST = (
    _dejavu("LATIN", ("en", "de", "fr", "es", "pt", "it", "nl", "sv", "pl", "cs", "tr", "vi", "fi", "hu"), DEJAVU),
    _dejavu("GREEK", ("el",), DEJAVU),
    _dejavu("CYRILLIC", ("ru", "uk", "bg", "kk", "mn", "sr"), DEJAVU),
    _dejavu("ARMENIAN", ("hy",), (*_SANS, "DejaVuSerif")),
    _dejavu("GEORGIAN", ("ka",), (*_SANS, "DejaVuSerif")),
    _dejavu("ARABIC", ("ar", "fa", "ur"), _SANS, shaped=True, rtl=True),
    _dejavu("HEBREW", ("he",), _SANS[:1], rtl=True, shaped=True),
    _dejavu("LAO", ("lo",), _SANS[:1], shaped=True),
    _dejavu("NKO", ("nqo",), _SANS[:1], shaped=True, rtl=True),
    _dejavu("TIFINAGH", ("zgh", "shi"), _SANS),
    _fontpkg("DEVANAGARI", ("hi", "mr", "ne"), "noto-sans-devanagari", "NotoSansDevanagari[wdth,wght]"),
    _fontpkg("BENGALI", ("bn", "as"), "hind-siliguri", "HindSiliguri-Regular"),
    _fontpkg("TAMIL", ("ta",), "noto-sans-tamil", "NotoSansTamil[wdth,wght]"),
    _fontpkg("TELUGU", ("te",), "noto-sans-telugu", "NotoSansTelugu[wdth,wght]"),
    _fontpkg("THAI", ("th",), "noto-sans-thai", "NotoSansThai[wdth,wght]"),
    _fontpkg("KHMER", ("km",), "noto-sans-khmer", "NotoSansKhmer[wdth,wght]"),
    Script(
        "HANGUL", ("ko",), "koreanize_matplotlib", "fonts", ("NanumGothic", "NanumGothicBold"), "koreanize-matplotlib"
    ),
    # no wheel with a licence to rely on carries these: they need a font that the recipe names
    Script("CJK UNIFIED", ("zh", "zh_Hant"), "", "", (), ""),
    Script("KATAKANA", ("ja",), "", "", (), ""),
    Script("ETHIOPIC", ("am", "ti"), "", "", (), "", shaped=True),
    Script("GUJARATI", ("gu",), "", "", (), "", shaped=True),
    Script("GURMUKHI", ("pa",), "", "", (), "", shaped=True),
    Script("KANNADA", ("kn",), "", "", (), "", shaped=True),
    Script("MALAYALAM", ("ml",), "", "", (), "", shaped=True),
    Script("SINHALA", ("si",), "", "", (), "", shaped=True),
    Script("ORIYA", ("or",), "", "", (), "", shaped=True),
    Script("MYANMAR", ("my",), "", "", (), "", shaped=True),
    Script("TIBETAN", ("bo", "dz"), "", "", (), "", shaped=True),
    Script("CHEROKEE", ("chr",), "", "", (), ""),
)
SCRIPTS = {script.name: script for script in _LIST}


@cache
def faces_of(script: Script, others: tuple[Path, ...]) -> tuple[Path, ...]:
    """The script's own font files that are installed, then those of ``others`` that hold most of its words' letters."""
    folder = package_folder(script.module) if script.module else None
    own = [] if folder is None else [folder / script.folder / f"{face}.ttf" for face in script.faces]
    letters = {letter for word in words_of(script) for letter in word}
    fitting = [path for path in others if letters and len(letters & characters(path)) >= 0.8 * len(letters)]
    return tuple(path for path in [*own, *fitting] if path.is_file())


def why_not(script: Script, others: tuple[Path, ...]) -> str | None:
    """Why the script cannot be drawn here and what to do; None where it can."""
    if script.shaped and not features.check("raqm"):
        return f"{script.name}: Pillow needs libfribidi (Debian: libfribidi0) to shape it"
    if not faces_of(script, others):
        where = (
            f"pip install {script.package}"
            if script.package
            else "name it in debian_packages: fonts-noto-core or fonts-noto-cjk"
        )
        return f"{script.name}: no font for it is installed: {where}"
    return None


@cache
def characters(path: Path) -> frozenset[str]:
    """What the font has a glyph for."""
    from fontTools.ttLib import TTFont

    with TTFont(path, fontNumber=0, lazy=True) as font:
        return frozenset(map(chr, font.getBestCmap()))


@cache
def words_of(script: Script) -> tuple[str, ...]:
    """Words of 2 to 14 characters that are written in the script alone, sorted."""
    from babel import Locale

    found = set()
    for name in script.locales:
        locale = Locale.parse(name)
        for names in (locale.territories, locale.languages, locale.currencies):
            found |= {word.strip(".,()-’'\"،") for phrase in names.values() for word in phrase.split()}

    def fits(word: str) -> bool:
        named = [unicodedata.name(c, "") for c in word]
        letters = [n for c, n in zip(word, named, strict=True) if not unicodedata.category(c).startswith("M")]
        marks_fit = all(n.startswith((script.name, "COMBINING")) for n in named)
        return 2 <= len(word) <= 14 and marks_fit and all(n.startswith(script.name) for n in letters)

    return tuple(sorted(unicodedata.normalize("NFC", word) for word in found if fits(word)))


@cache
def _all_faces() -> tuple[Path, ...]:
    return tuple(dict.fromkeys(path for script in _LIST for path in faces_of(script, ())))


def font_for(words: str) -> Path:
    """The installed font that holds most characters of ``words``; DejaVu Sans among equals."""
    wanted = set(words)
    return max(_all_faces(), key=lambda path: len(wanted & characters(path)))


@cache
def typeface(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def word_mask(word: str, font: ImageFont.FreeTypeFont) -> tuple[Image.Image, float]:
    """How much ink each pixel holds, as an L picture whose origin is one font size left of the pen and above the
    ascender, and how far the pen moves on, in pixels."""
    pad, advance = round(font.size), font.getlength(word)
    ascent, descent = font.getmetrics()
    mask = Image.new("L", (int(advance) + 2 * pad, ascent + descent + 2 * pad))
    ImageDraw.Draw(mask).text((pad, pad), word, 255, font)
    return mask, advance
