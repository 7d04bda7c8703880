"""Letters on pictures: Pillow's own font, and for scripts that it lacks a font that this machine has.

What no font has is never drawn as empty boxes: a class is called by its number then, other words by their code points,
and one line says what to install. `FAPN_ZOO_FONT` names font files, joined as in PATH, that are tried first.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import logging
import os
import re
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from PIL import ImageDraw, ImageFont, features

logger = logging.getLogger(__name__)

Face = ImageFont.FreeTypeFont
OWN = ""  # stands for Pillow's own font among the files
PROBE = 16  # size at which fonts are looked into
SUFFIXES = (".ttf", ".otf", ".ttc")
FOLDERS = {
    "linux": ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts"),
    "darwin": ("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"),
    "win32": ("C:/Windows/Fonts", "~/AppData/Local/Microsoft/Windows/Fonts"),
}
UNLIKE = ("bold", "italic", "oblique", "black", "mono", "serif", "light", "thin", "condensed")  # the rest of a picture
# Line breaks, tabs and the like, which no font draws: a space on pictures.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def check_named() -> None:
    """ValueError where `FAPN_ZOO_FONT` names what is no font: before work whose pictures come at its end."""
    _named(os.environ.get("FAPN_ZOO_FONT", ""))


def write(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, colour: object, size: int) -> None:
    """Draws a line of text; `place` (x, y) is its upper left corner, as for `ImageDraw.text`."""
    runs = _runs(text)
    if [file for file, _ in runs] == [OWN]:
        draw.text(place, runs[0][1], colour, face(size))
        return
    x, baseline = place[0], place[1] + face(size).getmetrics()[0]
    for file, part in runs:
        draw.text((x, baseline), part, colour, face(size, file), anchor="ls")
        x += face(size, file).getlength(part)


def length(text: str, size: int) -> float:
    """Pixels that a line of text is wide."""
    return sum(face(size, file).getlength(part) for file, part in _runs(text))


def class_names(names: Sequence[str], shaping: bool | None = None) -> list[str]:
    """The names as they can be drawn: "class 3" in place of words for whose letters there is no font.

    `shaping`: whether whoever draws them joins letters and turns lines around; None asks Pillow.
    """
    shown = []
    for i, name in enumerate(CONTROL.sub(" ", name) for name in names):
        words = [] if name.isascii() else name.split()
        drawn = [word for word in words if font_of(word, shaping) is not None]
        shown.append(name if len(drawn) == len(words) else " ".join([f"class {i}", *drawn]))
    return shown


def spelled(text: str) -> str:
    """The text with the code points of letters that no font has: what `write` draws."""
    return "".join(part for _, part in _runs(text))


def font_of(word: str, shaping: bool | None = None) -> str | None:
    """The font file for a word, `OWN`, or None where no font has all of its letters, or they cannot be joined."""
    if not (features.check("raqm") if shaping is None else shaping) and any(map(_needs_shaping, word)):
        _say("what draws them here cannot join letters or turn lines around (Pillow can where it has libraqm)")
        return None
    file = _find(word, os.environ.get("FAPN_ZOO_FONT", ""))
    if file is None:
        install = "fonts-noto-core or fonts-noto-cjk on Debian and Ubuntu, or name a file with FAPN_ZOO_FONT"
        _say(f"no font here has all of their letters; install one, {install}")
    return file


@functools.cache
def face(size: int, file: str = OWN) -> Face:
    """A font at a size in pixels."""
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)


def _runs(text: str) -> list[tuple[str, str]]:
    """(file, part) of a line: neighbours of one font together, so that lines that run leftwards stay in order."""
    text = CONTROL.sub(" ", text)
    if text.isascii():
        return [(OWN, text)]
    found: list[tuple[str, str]] = []
    for word in re.findall(r"\s*\S+|\s+$", text):
        file = font_of(word.strip())
        if file is None:
            file, word = OWN, word.encode("ascii", "backslashreplace").decode()
        if found and file == found[-1][0]:
            found[-1] = file, found[-1][1] + word
        else:
            found.append((file, word))
    return found or [(OWN, text)]


@functools.lru_cache(1)
def _named(files: str) -> tuple[str, ...]:
    """The fonts of `FAPN_ZOO_FONT`; ValueError for what is none."""
    found = tuple(file for file in files.split(os.pathsep) if file)
    for file in found:
        try:
            ImageFont.truetype(file, PROBE)
        except OSError as error:
            raise ValueError(f"FAPN_ZOO_FONT={file!r} is no font file that can be read ({error})") from None
    return found


@functools.lru_cache(1)
def _files() -> list[str]:
    """The fonts of this machine, plain ones first, without those whose letters are boxes."""
    return sorted((file for file in _installed() if "LastResort" not in file), key=_rank)


@functools.lru_cache(4096)
def _find(word: str, named: str) -> str | None:
    """The first font that has all letters of a word, those in `named` before those of the machine."""
    letters = {letter for letter in word if not _is_silent(letter)}
    for files in (lambda: (OWN,), lambda: _named(named), _files):  # the machine's are listed where nothing else helps
        for file in files():
            if all(_has(file, letter) for letter in letters):
                return file
    return None


def _has(file: str, letter: str) -> bool:
    """Whether a font has a glyph for a letter: one that does not look like that of a code point which no font has."""
    try:
        return _glyph(file, letter) != _glyph(file, "\U0010ffff")
    except OSError:  # damaged, or made of pictures of one size, as fonts of coloured emoji are
        return False


@functools.lru_cache(4096)
def _glyph(file: str, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = _plain(file).getmask(letter)
    return mask.size, bytes(mask)


@functools.lru_cache(8)
def _plain(file: str) -> Face:
    """A font that shows every letter on its own, whatever stands beside it."""
    if file:
        return ImageFont.truetype(file, PROBE, layout_engine=ImageFont.Layout.BASIC)
    return ImageFont.load_default(PROBE)


def _installed() -> set[str]:
    folders = [Path(folder).expanduser() for folder in FOLDERS.get(sys.platform, FOLDERS["linux"])]
    matplotlib = importlib.util.find_spec("matplotlib")  # which brings a font of many scripts
    if matplotlib is not None and matplotlib.origin:
        folders.append(Path(matplotlib.origin).parent / "mpl-data/fonts/ttf")
    paths = itertools.chain.from_iterable(folder.rglob("*") for folder in folders)
    return {str(path) for path in paths if path.suffix.lower() in SUFFIXES}


def _rank(file: str) -> tuple[int, bool, str]:
    name = Path(file).name.lower()
    return sum(word in name.replace("sans-serif", "") for word in UNLIKE), "sans" not in name, file


def _needs_shaping(letter: str) -> bool:
    return unicodedata.bidirectional(letter) in ("R", "AL") or unicodedata.category(letter) == "Mc"


def _is_silent(letter: str) -> bool:
    """Spaces, and what only tells neighbours how to look."""
    return letter.isspace() or unicodedata.category(letter) in ("Cf", "Cc") or "\ufe00" <= letter <= "\ufe0f"


@functools.cache
def _say(why: str) -> None:
    """Once for every reason."""
    logger.warning("some words are shown by numbers on pictures: %s", why)
