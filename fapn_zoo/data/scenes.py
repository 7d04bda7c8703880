"""Street scenes drawn from a seed, painted back to front (metres: x right, y up, z ahead), with exact ground truth.

Colour is drawn at twice the size and averaged down, object numbers without antialiasing. Pixels see only integer or
plain IEEE arithmetic (no exp, sin, float resampling), so a seed gives the same arrays on every machine. scenes.json
has the tables: the parts of flat figures are class, colour, brightness and outline, or its centre and half sizes too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

_TABLES = json.loads((files("fapn_zoo") / "data" / "scenes.json").read_text(encoding="utf-8"))
SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)
CLASSES = tuple(name for name, _ in _TABLES["classes"])
PALETTE = tuple(tuple(bytes.fromhex(colour)) for _, colour in _TABLES["classes"])
THINGS, GROUND, VOID = (CAR, PEDESTRIAN, BICYCLIST), (SKY, ROAD, PAVEMENT, TREE), 255
BOX, DISC = _TABLES["outlines"]["box"], _TABLES["outlines"]["disc"]


@dataclass(frozen=True)
class Scene:
    """One scene: what the camera sees and the truth about each pixel."""

    image: np.ndarray  # uint8 (H, W, 3) RGB
    semantic: np.ndarray  # uint8 (H, W), class, 255 = void
    instances: np.ndarray  # int32 (H, W), number of the thing, 0 = none
    panoptic: np.ndarray  # int32 (H, W), id of the segment, 0 = void
    segments: tuple[dict, ...]  # id, category_id, isthing, area (pixels), bbox (x, y, width, height)


Point = tuple[float, ...]  # (x, y) in pixels, or (x, y, z) in metres; (x, z) on the ground
Colour = tuple[float, ...]  # red, green, blue in 0..255


class _Canvas:
    """The camera, the dice, and three layers: colour (at 2x), object numbers, shade on the ground."""

    def __init__(self, seed: int, h: int, w: int) -> None:
        self.rng, self.h, self.w, self.objects = np.random.default_rng(seed), h, w, [(k, 0) for k in GROUND]
        self.f, self.cam, self.sunny = self.u(0.85, 1.2) * max(w, h * 4 / 3), self.u(1.3, 1.9), self.u()
        self.vx, self.hy = w * self.u(0.36, 0.64), h * self.u(0.38, 0.54)
        self.bend = self.u(-0.07, 0.07) * self.u(0, 0.09)
        self.sun, self.shade = (self.u(-1.2, 1.2), self.u(-0.6, 0.8)), Image.new("L", (w, h), 255)

    def u(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * self.rng.random()

    def pick(self, items: Sequence[Any]) -> Any:
        return items[int(self.rng.random() * len(items))]

    def tint(self, name: str, light: float = 1.0) -> Colour:
        return tuple((v + self.u(-10, 10)) * light for v in bytes.fromhex(self.pick(_TABLES["colours"][name])))

    def at(self, x: float, y: float, z: float) -> Point:
        """Where a point is seen; nothing is placed nearer than a metre."""
        return self.vx + (x + self.bend * z * z) * self.f / z, self.hy + (self.cam - y) * self.f / z

    def noise(self, cell: float, w: int, h: int) -> np.ndarray:
        """Smooth, float32 (h, w) in -1..1, in blobs `cell` pixels wide."""
        grid = self.rng.integers(0, 256, (int(h / cell) + 2, int(w / cell) + 2), np.uint8)
        return np.asarray(Image.fromarray(grid).resize((w, h), Image.BILINEAR), np.float32) / 127.5 - 1

    def poly(
        self, points: Sequence[Point], colour: Colour | None, light: float = 1.0, ids: bool = True, cull: bool = False
    ) -> None:
        """Fill an outline, 2D in pixels or 3D in metres; no `colour`: label only, no `ids`: colour only."""
        points = [self.at(*p) for p in points] if len(points[0]) == 3 else points
        if cull and sum(p[0] * q[1] - q[0] * p[1] for p, q in zip(points, points[1:] + points[:1], strict=True)) > 0:
            return
        if colour:
            self.draw.polygon([(2 * x, 2 * y) for x, y in points], tuple(int(v * light) for v in colour))
        if ids:
            self.draw_ids.polygon(points, len(self.objects) - 1)

    def wall(
        self, a: Point, b: Point, y0: float, y1: float, colour: Colour | None, light: float = 1.0, ids: bool = True
    ) -> None:
        """Fill what stands over the line a to b, each (x, z), between two heights."""
        self.poly(((a[0], y0, a[1]), (b[0], y0, b[1]), (b[0], y1, b[1]), (a[0], y1, a[1])), colour, light, ids)

    def shadow(self, x: float, z: float, rx: float, rz: float, height: float) -> None:
        """A dark patch on the ground and, in sunshine, the shadow cast."""
        u, v = self.sun
        near, far = ([self.at(x + a * rx + k * u, 0, z + b * rz + k * v) for a, b in BOX] for k in (0, height))
        for i in (0, 1) if self.sunny > 0.4 else ():
            ImageDraw.Draw(self.shade).polygon([near[i], near[i + 2], far[i + 2], far[i]], int(215 - 95 * self.sunny))
        ImageDraw.Draw(self.shade).polygon(near, 75)


def _base(c: _Canvas, road: Point, walks: Point) -> None:
    """Sky with clouds; asphalt, slabs and what lies beyond, the shadows of houses; kerbs and marks."""
    h, w, top, cloud = c.h, c.w, int(c.hy) + 1, tuple(map(int, c.tint("cloud")))
    high, low = np.float32([c.tint("sky"), (238, 240, 242)])
    sky = (high + (low - high) * np.linspace(0, 1, top)[:, None, None]).astype(np.uint8)
    cover = Image.fromarray((255 * c.noise(h / 7, w, top) + c.u(-128, 128)).clip(0, 255).astype(np.uint8))
    sky = Image.composite(Image.new("RGB", (w, top), cloud), Image.fromarray(sky).resize((w, top), 0), cover)
    z = np.float32(c.f * c.cam) / (np.arange(top, h, dtype=np.float32)[:, None] + np.float32(0.5 - c.hy))
    x = (np.arange(w, dtype=np.float32) + np.float32(0.5 - c.vx)) * (z / np.float32(c.f)) - np.float32(c.bend) * z * z
    kinds = np.where((x < road[0] - walks[0]) | (x > road[1] + walks[1]), c.pick((1, 2, 2, 3)), 2).astype(np.int32)
    kinds[(x > road[0]) & (x < road[1])] = 1
    dirt, grain, near, cell = c.noise(6, 256, 256), c.noise(1, 256, 256), np.minimum(9 / z, 1), np.float32(c.u(0.4, 1))

    def look(field: np.ndarray, kx: float, kz: float) -> np.ndarray:
        """The field laid on the ground, kx and kz samples per metre."""
        return field[(z * np.float32(kz)).astype(np.int32) & 255, (x * np.float32(kx) + 128).astype(np.int32) & 255]

    reach = np.float32(c.u(-0.5, 1.3) * (road[1] - road[0])) * (1 + look(dirt, 0, 1.3))
    cast = np.clip((reach - (x - road[0] if c.sun[0] > 0 else road[1] - x)) * 2, 0, 1) * np.float32(0.55 * c.sunny)
    joints = ((x / cell - np.floor(x / cell) < 0.04) | (z % cell < 0.03)) & (kinds == 2)
    speck = (1 + 0.12 * look(dirt, 9, 1.5) + 0.14 * near * look(grain, 60, 60)) * (1 - cast) * (1 - 0.3 * near * joints)
    ground = np.float32([cloud, c.tint("road"), c.tint("grey", 1.1), c.tint("leaf")]).take(kinds, 0) * speck[..., None]
    image = np.concatenate([np.asarray(sky), ground.clip(0, 255).astype(np.uint8)])
    c.rgb, c.ids = Image.fromarray(image).resize((2 * w, 2 * h), 0), Image.fromarray(np.pad(kinds, ((top, 0), (0, 0))))
    c.z, c.draw, c.draw_ids = z, ImageDraw.Draw(c.rgb), ImageDraw.Draw(c.ids)
    lanes, dash = max(2, int((road[1] - road[0]) / 3)), c.u(4, 9)
    paint, kerb = c.tint("white", 0.9), c.tint("grey", 1.4)
    strips = [(road[0] + (road[1] - road[0]) * k / lanes, 0.06, 0.45, paint) for k in range(1, lanes)]
    strips += [(e * k, 0.1 * k - 0.03, 1, tone) for e in road for k, tone in ((1, kerb), (c.pick((1, 0.9)), paint))]
    for d, (m, r, share, tone) in ((d, strip) for d in np.arange(90, 1, -dash).tolist() for strip in strips):
        c.poly([(m + a * r, 0, d + dash * share * (b > 0)) for a, b in BOX], tone, 1, False)


def _walls(
    c: _Canvas, kind: int, corners: Sequence[Point], height: float, colours: Sequence[Any], pitch: float, share: Point
) -> None:
    """Walls along corners (x, z) with windows `pitch` apart; a fence has bars for windows and no colour of its own."""
    for a, b in zip(corners, corners[1:], strict=False):
        c.objects.append((kind, (max(a[1], 1) + b[1]) / 2))
        light = 1 - 0.4 * c.sunny * (c.sun[1] < 0 if a[1] == b[1] else c.sun[0] * a[0] < 0)
        c.wall(a, b, 0, height, colours[0], light)
        c.wall(a, b, height * 0.94, height, colours[1], light, False)
        n, rows = int((abs(a[0] - b[0]) + b[1] - a[1]) / pitch) + 1, max(1, int(height / 3))
        for j, i in np.ndindex(rows, n if a[1] * 7 < c.f else 0):
            p, q = ([u + (v - u) * (i + k) / n for u, v in zip(a, b, strict=True)] for k in share[:2])
            c.wall(p, q, *(height * (j + k) / rows for k in share[2:]), colours[1], light * c.u(0.7, 1.4), False)


def _tree(c: _Canvas, x: float, z: float, height: float, radius: float, bare: bool) -> None:
    """A trunk and a crown cut out of noise; the label of a bare crown is its whole outline."""
    c.objects.append((TREE, z))
    c.wall((x - height / 50, z), (x + height / 50, z), 0, height - radius, c.tint("bark", 0.8))
    colour, (cx, cy), r = c.tint("bark" if bare else "leaf"), c.at(x, height - radius, z), max(2, int(radius * c.f / z))
    px, py, k = int(cx) - r, int(cy) - r, min(max(2 * r, 16), 128)
    v, u = np.ogrid[-1.3 : 1.3 : k * 1j, -1.3 : 1.3 : k * 1j]
    fine, bulk = c.noise(k / 48, k, k) - (0.3 if bare else v + u * c.sun[0]), u * u + v * v - c.noise(k / 7, k, k) < 1
    tones = 0 + (fine > -0.2) if bare else 1 + (fine > -0.3) + (fine > 0.5)  # 0 = see-through, else dark to bright
    shades = np.float32([0, 0.6, 0.95, 1.3])[tones][..., None] * np.float32(colour)
    crown = Image.fromarray(np.dstack([shades, 255 * (bulk & (tones > 0))]).astype(np.uint8)).resize((4 * r, 4 * r), 0)
    c.rgb.paste(crown, (2 * px, 2 * py), crown)
    c.ids.paste(len(c.objects) - 1, (px, py), Image.fromarray(bulk.astype(np.uint8) * 255).resize((2 * r, 2 * r), 0))


def _figure(c: _Canvas, figure: str, x: float, z: float) -> None:
    """A flat figure out of a table of parts, with its shadow; figures differ in size and stride."""
    (px, py), s, flip, stride, colours = c.at(x, 0, z), c.f / z * c.u(0.85, 1.1), c.pick((-1, 1)), c.u(0.3, 1.6), {}
    c.shadow(x, z, 0.25, 0.2, 1.7)
    for kind, name, light, outline, *place in _TABLES["figures"][figure]:
        c.objects += [(kind, z)] * (not colours or c.objects[-1][0] != kind)  # a sign is another object than its pole
        outline = _TABLES["outlines"][outline] if isinstance(outline, str) else outline
        cx, cy, rx, ry = place or (0, 0, stride if outline[-1] in ([0.1, 0], [-0.2, 0]) else 1, 1)
        points = [(px + flip * s * (cx + a * rx), py - s * (cy + b * ry)) for a, b in outline]
        c.poly(points, colours.setdefault(name, c.tint(name)), light)


def _car(c: _Canvas, x: float, z: float, dx: int, dz: int, kind: int) -> None:
    """A vehicle heading along (dx, dz): a side profile, rear to front in shares of length and height, and its width."""
    profile, (length, width, height) = _TABLES["vehicles"][kind]
    paint, pane, tone, z = c.tint("paint"), c.tint("dark"), 1 - 0.35 * c.sunny, z + abs(dz) * length / 2
    c.objects.append((CAR, z))
    c.shadow(x, z, (length * abs(dx) + width * abs(dz)) / 2, (length * abs(dz) + width * abs(dx)) / 2, height)

    def face(corners: Sequence[Point], colour: Colour, light: float = 1.0, ids: bool = False) -> None:
        """Fill a face, its corners (u, y, v): 0..1 rear to front, 0..1 up, -1..1 across."""
        half = width / 2
        sides = [((u - 0.5) * length, y, v * half * (1 - 0.5 * max(0, y - 0.6) * (kind < 2))) for u, y, v in corners]
        c.poly([(x + p * dx + q * dz, y * height, z + p * dz - q * dx) for p, y, q in sides], colour, light, ids, True)

    for i in range(6) if dz < 0 else range(5, -1, -1):
        (u, y), (u1, y1) = profile[i : i + 2]
        for a, b, r, colour in ((0, 1, 1, paint), (0.1, 0.9, 0.85, pane))[: 1 + (i in (1, 3))]:
            corners = [(u + (u1 - u) * k, y + (y1 - y) * k, v) for k, v in ((a, -r), (a, r), (b, r), (b, -r))]
            face(corners, colour, 1.15 if abs(u1 - u) > 0.12 else tone, colour is paint)
    u, lamp, k = (0, "red", 1) if x * dx + z * dz > 0 else (1, "white", -1)  # the end and the side that can be seen
    for v, y, up, name in ((v, *row) for v in (-0.75, 0.75) for row in ((0.48, 0.06, lamp), (0.12, 0.12, "dark"))):
        face([(u, y + b * up, v + k * a * 0.2) for a, b in BOX], c.tint(name, 0.7), 1, name == "dark")
    v, glass = 1 if dx * z > dz * x else -1, ((1, 0.05, 0.64), (2, 0.06, 0.92), (3, 0, 0.93), (4, -0.05, 0.64))
    face([(u, y, v) for u, y in profile[::-v]], paint, tone if v * dz * c.sun[0] > 0 else 1, True)
    face([(profile[i][0] + shift, y, v) for i, shift, y in glass[::-v]], pane)
    for u, r, name in ((0.19, 0.33, "dark"), (0.19, 0.2, "grey"), (0.81, 0.33, "dark"), (0.81, 0.2, "grey")):
        face([(u + a * r / length, (0.32 + b * r) / height, v) for a, b in DISC[::v]], c.tint(name, 0.8), 1, r > 0.2)


def _street(c: _Canvas, road: Point, walks: Point) -> list[tuple]:
    """What stands where, as (distance, function, arguments), far to near: backdrop, both sides, traffic."""
    jobs = [(160, _walls, TREE, ((-160, 160), (160, 160)), c.u(2, 9), (c.tint("leaf"),) * 2, 9, (0, 1, 0, 1))]
    for side, edge, walk in ((-1, road[0], walks[0]), (1, road[1], walks[1])):
        front, end, town = edge + side * walk, c.u(1, 4), c.pick((0.2, 0.6, 0.85))
        while end < 120:
            z, end = end + max(0, c.u(-4, 4)), end + c.u(7, 18)
            x, gap = front + side * c.u(0, 1.5 if town > 0.5 else 9), c.u(0.2, 0.38)
            corners, height = ((x + side * c.u(7, 14), z), (x, z), (x, end)), c.u(5, 15)
            colours = c.tint("wall"), c.tint("dark", c.u(0.8, 2))
            jobs.append((end, _walls, BUILDING, corners, height, colours, c.u(2, 3.6), (gap, 1 - gap, 0.25, 0.8)))
            if c.u() > town and abs(x) < 0.6 * end:
                jobs[-1] = (end, _tree, x + side * c.u(0, 4), end, c.u(7, 13), c.u(2.5, 4.5), c.u() < 0.5)
        numbers = _TABLES["beside the road"]
        for name, first, last in [row[::2] + row[3:] for row in numbers for _ in range(int(c.u(0, row[1])))]:
            z = c.u(first, last)
            jobs.append((z, _figure, name, edge + side * c.u(0.3, walk), z))
        x, top = c.pick((edge + side * 0.3, front)), c.u(0.8, 1.4)
        look = c.pick((None, c.tint("wall"))), c.tint("dark")
        for z in np.arange(c.u(3, 20), c.u(9, 45), 3).tolist() if c.u() < 0.5 else ():
            jobs.append((z + 3, _walls, FENCE, ((x, z), (x, z + 3)), top, look, 0.25, (0, 0.15, 0, 1)))
        for z in np.arange(c.u(6, 25), 60, c.u(5.5, 11)).tolist() if c.u() < 0.6 else ():
            jobs.append((z, _car, edge - side * 1.1, z, 0, c.pick((1, 1, -1)), c.pick((0, 0, 0, 1))))
    for z in np.cumsum([2] + [c.u(4, 16) for _ in range(int(c.u(0, 8)))]).tolist()[1:]:
        x, away = c.u(road[0] + 1, road[1] - 1), c.pick((-1, 1))
        if c.u() < 0.2:
            jobs.append((z, _figure, c.pick(("rider", "rider from the side")), x, z))
        else:
            jobs.append((z, _car, x, z, *c.pick(((0, away),) * 8 + ((away, 0),)), c.pick((0, 0, 0, 0, 1, 2))))
    return sorted(jobs, key=lambda job: -job[0])


def _photograph(c: _Canvas, objects: np.ndarray) -> np.ndarray:
    """Paint to picture: texture, shade, haze, vignette, blur, exposure, contrast, temperature, sensor noise."""
    (h, w), unit, top, reach = objects.shape, max(c.h / 360, 0.3), c.h - len(c.z), c.u(200, 900)
    haze, texture = np.float32([(z / (z + reach), _TABLES["texture"][min(k, 11)]) for k, z in c.objects]).T
    haze, texture, floor = haze[objects], texture[objects], objects < 4
    haze[top:] = np.where(floor[top:], c.z / (c.z + np.float32(reach)), haze[top:])
    shade = np.asarray(c.shade.filter(ImageFilter.BoxBlur(1.5 * unit)), np.float32) / 255
    gain = (1 + (0.6 * c.noise(20 * unit, w, h) + 0.5 * c.noise(2.3 * unit, w, h)) * texture) * (1 - haze)
    gain *= np.where(floor, shade, np.float32(1)) * np.where(objects, np.float32(c.u(0.75, 1)), np.float32(1.4))
    gain *= np.float32(1 - c.u(0, 0.3) * (np.linspace(-1, 1, h)[:, None] ** 2 + np.linspace(-1, 1, w) ** 2))
    image = np.asarray(c.rgb.reduce(2), np.float32) * gain[..., None]
    image += (haze * np.float32(c.u(165, 220)))[..., None]
    image += (image[..., 1:2] - image) * np.float32(c.u(-0.2, 0.5))
    blur = ImageFilter.BoxBlur(max(0, c.u(-1, 0.7)) * unit)
    image = Image.fromarray(image.clip(0, 255).astype(np.uint8)).filter(blur)
    warm, exposure, contrast, k = c.u(-0.1, 0.1), c.u(0.6, c.pick((1, 1.8, 1.8))), c.u(0, 0.9), c.pick((1, 3, 7, 15))
    t = np.minimum(np.arange(256) / 255 * exposure * np.array([[1 + warm], [1], [1 - warm]]), 1)
    image = image.point([int(255 * v) for v in (t + contrast * t * (1 - t) * (2 * t - 1)).ravel()])
    grain = np.frombuffer(c.rng.bytes(h * w * 3), np.uint8).reshape(h, w, 3) & k
    return np.array(ImageChops.add(image, Image.fromarray(grain), 1, -(k // 2)))


def _truth(
    objects: np.ndarray, table: Sequence[tuple[int, float]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[dict, ...]]:
    """Class, instance and segment maps and the list of segments, from the object numbers."""
    keys = [(category, i if category in THINGS else 0) for i, (category, _) in enumerate(table)]
    seen = sorted({keys[i] for i in np.flatnonzero(np.bincount(objects.ravel()))} - {(VOID, 0)})
    ids = np.array([seen.index(key) + 1 if key in seen else 0 for key in keys], np.int32)[objects]
    (h, w), n, stuff, segments = ids.shape, len(seen) + 1, sum(k not in THINGS for k, _ in seen), []
    axes = (w, np.arange(w)), (h, np.arange(h)[:, None])
    spans = [np.bincount((ids * m + steps).ravel(), minlength=n * m).reshape(n, m) for m, steps in axes]
    for i, (k, _) in enumerate(seen, 1):
        (x, right), (y, low) = (np.flatnonzero(m[i])[[0, -1]].tolist() for m in spans)
        area, box = int(spans[0][i].sum()), (x, y, right - x + 1, low - y + 1)
        segments.append({"id": i, "category_id": k, "isthing": k in THINGS, "area": area, "bbox": box})
    return np.uint8([k for k, _ in table])[objects], np.maximum(ids - stuff, 0), ids, tuple(segments)


def generate_scene(seed: int, size: tuple[int, int] = (360, 480)) -> Scene:
    """Draw the scene of `seed` (int >= 0) at `size` = (height, width) in pixels, each at least 32; else ValueError."""
    if len(size) != 2 or min(size) < 32:
        raise ValueError(f"scene size must be (height, width) of at least 32 pixels each, got {tuple(size)}")
    c = _Canvas(seed, *size)
    road, walks = c.pick(((-c.u(1.5, 2.6), c.u(4, 8)), (-c.u(4, 8), c.u(1.5, 2.6)))), (c.u(1.5, 4.5), c.u(1.5, 4.5))
    _base(c, road, walks)
    for _, draw, *arguments in _street(c, road, walks):
        draw(c, *arguments)
    objects = np.asarray(c.ids)
    return Scene(_photograph(c, objects), *_truth(objects, c.objects))
