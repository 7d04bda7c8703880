"""Street scenes drawn from a seed, with exact ground truth: the data that needs no download and no licence.

A scene is drawn back to front by one pinhole camera (metres: x right, y up, z ahead). Colour is drawn at twice the
size and averaged down, object numbers at the asked size without antialiasing, so labels are exact and edges look real.
Everything random comes from one `numpy.random.Generator`; images only see exact integer or IEEE basic arithmetic
(no exp, sin or float resampling), so equal seeds give equal arrays on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

CLASSES = ("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist")
PALETTE = ((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128),
           (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192))
THINGS = (8, 9, 10)
VOID = 255
SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)
# strength of coarse, middle and fine noise on each class; the last row is void
TEXTURE = np.array([(0, 0, 0), (.22, .14, .16), (.1, .1, .1), (.12, .06, .16), (.16, .1, .16), (.3, .5, .45), (.12, .2, .1),
                    (.2, .2, .25), (.15, .16, .08), (.15, .3, .2), (.15, .3, .2), (.1, .1, .1)], np.float32)
WALLS = ((134, 84, 66), (158, 118, 84), (176, 160, 130), (205, 200, 188), (120, 116, 112), (92, 74, 64), (170, 140, 100))
PAINTS = ((225, 226, 228), (168, 172, 176), (96, 100, 106), (34, 36, 40), (150, 26, 30), (34, 58, 120), (30, 84, 62), (190, 180, 150))
CLOTHES = ((36, 38, 46), (60, 62, 70), (40, 52, 92), (120, 40, 42), (170, 165, 155), (90, 76, 60), (200, 190, 60), (70, 100, 80))
SKINS = ((224, 186, 160), (190, 144, 112), (120, 84, 62))
SIGNS = ((190, 40, 40), (30, 70, 160), (225, 225, 220), (225, 180, 40), (40, 120, 70), (200, 90, 40))
# side profile of a vehicle, rear to front, in shares of length and height; length, width, height in metres; glass strips
VEHICLES = ((((0, .2), (0, .6), (.09, .97), (.55, 1), (.74, .62), (.97, .5), (1, .2)), (3.9, 1.7, 1.48), (1, 3)),
            (((0, .2), (.01, .62), (.15, .66), (.3, .97), (.58, 1), (.75, .64), (.97, .52), (1, .2)), (4.5, 1.8, 1.42), (2, 4)),
            (((0, .15), (0, .55), (.03, .97), (.72, 1), (.86, .6), (.98, .48), (1, .15)), (4.9, 1.95, 2.1), (1, 3)),
            (((0, .1), (0, .45), (.01, .98), (.98, 1), (1, .4), (1, .1)), (10, 2.5, 3.1), (1, 3)))


@dataclass(frozen=True)
class Scene:
    """One scene: `image` uint8 (H, W, 3) RGB, `semantic` uint8 (H, W) class or 255 (void), `instances` int32 (H, W)
    with 0 = none, `panoptic` int32 (H, W) segment ids with 0 = void, `segments`: one dict per id with `id`,
    `category_id`, `isthing`, `area` (pixels) and `bbox` (x, y, width, height); things first have their own segment each,
    a stuff class has one."""

    image: np.ndarray
    semantic: np.ndarray
    instances: np.ndarray
    panoptic: np.ndarray
    segments: tuple[dict, ...]


class _Canvas:
    """The camera, the dice and three layers: colour (2x), object numbers, shade on the ground."""

    def __init__(self, seed, h, w):
        self.rng, self.h, self.w = np.random.default_rng(seed), h, w
        self.f, self.cam = self.u(.85, 1.2) * max(w, h * 4 / 3), self.u(1.3, 1.9)
        self.vx, self.hy = w * self.u(.36, .64), h * self.u(.4, .54)
        self.bend = self.u(-1, 1) ** 3 * .006
        self.sunny, self.sun = self.u(0, 1), (self.u(-1.2, 1.2), self.u(-.6, .8))
        self.objects = [(SKY, 900.0), (ROAD, 0.0), (PAVEMENT, 0.0), (TREE, 0.0)]
        self.shade = Image.new("L", (w, h), 255)
        self.draw_shade = ImageDraw.Draw(self.shade)

    def u(self, low=0.0, high=1.0):
        return low + (high - low) * self.rng.random()

    def pick(self, items):
        return items[int(self.rng.random() * len(items))]

    def colour(self, items, spread=14):
        return tuple(v + self.u(-spread, spread) for v in self.pick(items))

    def noise(self, cell, w, h):
        """Smooth noise, uint8 (h, w), of blobs `cell` pixels wide."""
        grid = self.rng.integers(0, 256, (int(h / cell) + 3, int(w / cell) + 3), np.uint8)
        return Image.fromarray(grid).resize((w, h), Image.BICUBIC)

    def base(self, image, ids):
        self.rgb = Image.fromarray(image).resize((2 * self.w, 2 * self.h), Image.BILINEAR)
        self.ids = Image.fromarray(ids)
        self.draw, self.draw_ids = ImageDraw.Draw(self.rgb), ImageDraw.Draw(self.ids)

    def begin(self, category, z):
        self.objects.append((category, z))

    def at(self, x, y, z):
        z = max(z, .9)
        return self.vx + (x + self.bend * z * z) * self.f / z, self.hy + (self.cam - y) * self.f / z

    def poly(self, points, colour=None, ids=True):
        """Fill a polygon of image points; without a colour only labels, without ids only colour."""
        if colour is not None:
            self.draw.polygon([(2 * x + .5, 2 * y + .5) for x, y in points], tuple(min(255, max(0, int(v))) for v in colour))
        if ids:
            self.draw_ids.polygon(points, len(self.objects) - 1)

    def face(self, points, colour=None, ids=True):
        self.poly([self.at(*p) for p in points], colour, ids)

    def oval(self, x, y, rx, ry, colour, ids=True):
        self.draw.ellipse((2 * (x - rx), 2 * (y - ry), 2 * (x + rx) + 1, 2 * (y + ry) + 1), tuple(min(255, max(0, int(v))) for v in colour))
        if ids:
            self.draw_ids.ellipse((x - rx, y - ry, x + rx, y + ry), len(self.objects) - 1)

    def shadow(self, x, z, rx, rz, height):
        """Dark contact patch under an object and, in sunshine, its cast shadow."""
        dx, dz = self.sun[0] * height, self.sun[1] * height
        far = [self.at(x + dx + a * rx, 0, z + dz + b * rz) for a, b in ((-.8, -.3), (.8, -.3), (.6, .5), (-.6, .5))]
        near = [self.at(x + a * rx, 0, z + b * rz) for a, b in ((-1, -.4), (-.6, -1), (.6, -1), (1, -.4), (1, .5), (.5, 1), (-.5, 1), (-1, .5))]
        if self.sunny > .4:
            for pair in ((near[0], near[3]), (near[1], near[5])):
                self.draw_shade.polygon([pair[0], pair[1], far[2], far[3]], int(215 - 95 * self.sunny))
        self.draw_shade.polygon(near, 75)


def _mul(colour, k):
    return tuple(v * k for v in colour)


def _ground_and_sky(c, road, width, side_road):
    """Base layer: sky gradient with clouds, road with marks, kerbs and tiled pavement in ground coordinates."""
    h, w, hy = c.h, c.w, int(c.hy)
    image, ids = np.empty((h, w, 3), np.float32), np.zeros((h, w), np.int32)
    cover, high = c.u(-.6, 1), c.colour(((70, 120, 200), (130, 160, 200), (150, 155, 165)))
    low, cloud = np.float32(c.colour(((225, 230, 236), (200, 205, 215)))), np.float32(c.colour(((250, 250, 250), (165, 168, 175))))
    t = np.clip(np.arange(h, dtype=np.float32) / max(hy, 1), 0, 1)[:, None, None]
    image[:] = np.float32(high) * (1 - t) + low * t
    n = (np.asarray(c.noise(max(h / 4, 2), w, h), np.float32) + .5 * np.asarray(c.noise(max(h / 14, 2), w, h), np.float32)) / 191 - 1
    image += (cloud - image) * np.clip(n * 1.6 + cover, 0, 1)[..., None]
    z = np.float32(c.f * c.cam) / (np.arange(hy + 1, h, dtype=np.float32)[:, None] + np.float32(.5 - c.hy))
    x = (np.arange(w, dtype=np.float32) + np.float32(.5 - c.vx)) * z / np.float32(c.f) - np.float32(c.bend) * z * z
    px = np.float32(c.f) / z
    def line(d, half):  # soft coverage of a line of given half width at distance d, in metres
        return np.clip((half - np.abs(d)) * px + .5, 0, 1)
    crossing = (z > side_road[0]) & (z < side_road[1])
    on_road = ((x > road[0]) & (x < road[1])) | crossing
    beyond = ~on_road & ((x < road[0] - width[0]) | (x > road[1] + width[1]))
    ids[hy + 1:] = np.where(on_road, 1, np.where(beyond, c.pick((2, 2, 1, 3)), 2))
    tile = np.asarray(c.noise(3, 256, 256), np.float32) / 255 - .5
    def stains(kx, kz):
        return tile[(z * kz).astype(np.int32) & 255, (x * kx).astype(np.int32) & 255]
    grey, pave, grass = c.u(62, 120), np.float32(c.colour(((150, 146, 140), (128, 122, 118), (160, 140, 125)))), np.float32((84, 100, 56))
    ground = np.float32((grey, grey, grey + c.u(-4, 5))) * (1 + .3 * stains(5, .6) + .25 * stains(22, 12))[..., None]
    cell = c.u(.4, 1)
    joints = np.maximum(line((x % cell) - cell / 2, .012), line((z % cell) - cell / 2, .012)) * np.clip(px / 60, 0, 1)
    tiles = pave * (1 - .35 * joints + .25 * stains(9, 9))[..., None]
    kinds = ids[hy + 1:, :, None]
    ground = np.where(kinds == 2, tiles, np.where(kinds == 3, grass * (1 + .6 * stains(20, 20))[..., None], ground))
    kerb = np.maximum(line(x - road[0], .1), line(x - road[1], .1)) * ~crossing
    ground += (np.float32(pave + 20) - ground) * kerb[..., None] * .8
    lanes, dash = max(2, round((road[1] - road[0]) / 3.2)), c.u(4, 9)
    marks = np.zeros_like(x)
    for i in range(1, lanes):
        solid = c.u() < .15
        marks = np.maximum(marks, line(x - road[0] - (road[1] - road[0]) * i / lanes, .07) * (solid | ((z + c.u(0, 9)) % dash < dash * .45)))
    edge, colour = c.u(.25, .6), np.float32(c.pick(((205, 205, 200), (205, 205, 200), (190, 160, 60))))
    if c.u() < .5:
        marks = np.maximum(marks, np.maximum(line(x - road[0] - edge, .06), line(x - road[1] + edge, .06)))
    if c.u() < .3:
        at, deep = c.u(6, 30), c.u(.4, 3)
        marks = np.maximum(marks, ((z > at) & (z < at + deep)) * (((x % 1.2) < .6) | (deep < 1)))
    marks *= on_road & ~crossing
    if c.u() < .2:
        at = c.u(5, 14)
        marks = np.maximum(marks, np.maximum(line((x + z) % 2.4 - 1.2, .08), line((x - z) % 2.4 - 1.2, .08)) * ((z > at) & (z < at + 10) & on_road))
    ground += (colour - ground) * (marks * c.u(.4, .9) * (1 + stains(9, 4)))[..., None]
    reach = np.float32(c.u(0, 1.3) * (road[1] - road[0]))
    side = x - road[0] if c.sun[0] > 0 else road[1] - x
    cast = np.clip((reach * (1 + 1.2 * tile[(z * 1.3).astype(np.int32) & 255, 7]) - side) * 2, 0, 1)
    if c.u() < .3:
        cast = np.maximum(cast, np.clip(stains(3, 2) * 4, 0, 1))
    image[hy + 1:] = ground * (1 - .55 * c.sunny * cast)[..., None]
    c.base(np.clip(image, 0, 255).astype(np.uint8), ids)
    c.z = z


def _windows(c, corner, along, height, lit, z, glass):
    """Rows of windows on a wall that starts at `corner` (x, z), runs `along` (dx, dz) and rises `height` metres."""
    length = abs(along[0]) + abs(along[1])
    n, floors = max(1, int(length / c.u(2, 3.4))), max(1, int(height / 3))
    a, b, sill, top = c.u(.12, .3), c.u(.7, .88), c.u(.2, .4), c.u(.75, .9)
    if c.f / z * (b - a) * length / n < 1.5 or c.f / z < 3:
        return
    frame, shop = c.pick(((200, 200, 195), (70, 66, 62), (150, 140, 128))), c.u() < .6
    for j in range(floors):
        y0, y1 = height * (j + sill) / floors, height * (j + top) / floors
        if j == 0 and shop:
            y0, a0, b0 = .3, .05, .95
        else:
            a0, b0 = a, b
        for i in range(n):
            p, q = (i + a0) / n, (i + b0) / n
            def at(s, y):
                return corner[0] + along[0] * s, y, corner[1] + along[1] * s
            if c.f / z > 12:
                d = .06 / length
                c.face([at(p - d, y0 - .1), at(q + d, y0 - .1), at(q + d, y1 + .08), at(p - d, y1 + .08)], _mul(frame, lit), False)
            c.face([at(p, y0), at(q, y0), at(q, y1), at(p, y1)], _mul(glass, lit * c.u(.6, 1.5)), False)


def _building(c, side, x, z0, z1, height):
    """Facade along the street, end wall facing the camera, roof, windows and now and then a shop sign."""
    wall, lit, z = c.colour(WALLS), (c.u(.95, 1.15) if c.sun[0] * side > 0 else 1 - .45 * c.sunny), max(z0, 1.5)
    end, back, glass = (1 - .3 * c.sunny if c.sun[1] < 0 else c.u(.9, 1.1)), x + side * c.u(7, 14), c.colour(((48, 56, 66), (90, 104, 120), (36, 34, 34)))
    c.begin(BUILDING, (z + z1) / 2)
    roof, rise, deep = c.colour(((92, 60, 50), (74, 72, 74), (110, 92, 80))), c.u(1.5, 3.5), x + side * 4
    if c.u() < .5:
        c.face([(x, height, z0), (x, height, z1), (deep, height + rise, z1), (deep, height + rise, z0)], _mul(roof, lit))
        c.face([(x, height, z0), (deep, height + rise, z0), (back, height, z0)], _mul(wall, end))
    if c.u() < .4:
        c.face([(deep, height, z0 + 2), (deep + side, height, z0 + 2), (deep + side, height + rise + 1.2, z0 + 2), (deep, height + rise + 1.2, z0 + 2)], _mul(roof, end))
    c.face([(x, 0, z0), (back, 0, z0), (back, height, z0), (x, height, z0)], _mul(wall, end))
    _windows(c, (x, z0), (back - x, 0), height, end, z, glass)
    c.face([(x, 0, z0), (x, 0, z1), (x, height, z1), (x, height, z0)], _mul(wall, lit))
    _windows(c, (x, z0), (0, z1 - z0), height, lit, z, glass)
    c.face([(x, height - .3, z0), (x, height - .3, z1), (x, height, z1), (x, height, z0)], _mul(wall, lit * .75), False)
    if c.u() < .45 and z1 > 4:
        a, y = c.u(max(z0, 2), z1), c.u(2.6, 3.4)
        b = min(z1, a + c.u(1.5, 6))
        c.begin(SIGN, a)
        c.face([(x, y, a), (x, y, b), (x, y + c.u(.5, .9), b), (x, y + .7, a)], _mul(c.colour(SIGNS), lit))


def _tree(c, x, z, height, radius, bare):
    """Trunk and a crown cut out of noise; a bare crown keeps the whole outline as label and shows twigs."""
    c.begin(TREE, z)
    bark, leaf = c.colour(((70, 58, 48), (52, 46, 42)), 8), c.colour(((66, 86, 40), (88, 96, 46), (48, 70, 40), (110, 90, 44)))
    t, (cx, cy), s = .02 * height, c.at(x, height - radius, z), c.f / z
    c.face([(x - t, 0, z), (x + t, 0, z), (x + t / 2, height - radius, z), (x - t / 2, height - radius, z)], bark)
    r, k = max(2, int(radius * s)), 20
    if cx + r < 0 or cx - r > c.w or cy + r < 0:
        return
    grid = (np.arange(k, dtype=np.float32) + .5) * (2 / k) - 1
    disc = 1.05 - grid[:, None] ** 2 - grid ** 2
    shape = Image.fromarray(np.clip(128 + 200 * disc + c.rng.integers(-150, 150, (k, k)), 0, 255).astype(np.uint8) * (disc > .06))
    box, box2 = (int(cx) - r, int(cy) - r), (2 * (int(cx) - r), 2 * (int(cy) - r))
    big = np.asarray(shape.resize((4 * r, 4 * r), Image.BICUBIC))
    c.ids.paste(len(c.objects) - 1, box, shape.resize((2 * r, 2 * r), Image.BICUBIC).point(lambda v: 255 * (v > 127)))
    fleck = np.asarray(c.noise(max(2, r / 9), 4 * r, 4 * r))
    if bare:
        c.rgb.paste(tuple(map(int, bark)), box2, Image.fromarray(((big > 127) & (fleck > 140)).astype(np.uint8) * 255))
        for _ in range(9):
            a, b, y = c.u(-.8, .8) * r, c.u(-.9, .2) * r, c.u(0, r)
            c.poly([(cx, cy + y), (cx + t * s * .4, cy + y), (cx + a, cy + b)], bark, False)
        return
    sunny = np.clip(big.astype(np.int32) - 128, 0, 90) + np.linspace(70, -60, 4 * r).astype(np.int32)[:, None]
    for shade, limit in ((.55, -999), (.9, 150), (1.25, 215)):
        mask = (big > 127) & (fleck + sunny > limit)
        c.rgb.paste(tuple(min(255, int(v * shade)) for v in leaf), box2, Image.fromarray(mask.astype(np.uint8) * 255))


def _post(c, x, z, height, kind):
    """A thin pole; kind: "plain", "lamp" (with arm), "sign", "lights" (traffic lights) or "board" (advertisement)."""
    c.begin(POLE, z)
    s, width = c.f / z, max(1, min(round(c.u(.09, .2) * c.f / z), round(4 * max(1, c.h / 360))))
    left, foot = c.at(x, 0, z)
    top, left, grey = c.at(x, height, z)[1], int(left), _mul(c.pick(((150, 152, 150), (70, 72, 72), (48, 50, 48), (190, 190, 186))), c.u(.8, 1.1))
    c.poly([(left, top), (left + width - 1, top), (left + width - 1, foot), (left, foot)], grey)
    c.shadow(x, z, .15, .15, height)
    if kind == "lamp":
        arm, thick = c.pick((-1, 1)) * c.u(.8, 2) * s, max(1, width - 1)
        c.poly([(left, top), (left + arm, top - .3 * s), (left + arm, top - .3 * s + thick - 1), (left, top + thick - 1)], grey)
        c.poly([(left + arm, top - .3 * s), (left + arm * 1.4, top - .3 * s), (left + arm * 1.4, top - .12 * s), (left + arm, top - .12 * s)], _mul(grey, 1.2))
    if kind in ("sign", "board"):
        c.begin(SIGN, z)
        r, y = c.u(.3, .45) * s, top + .3 * s
        colour, inner = c.colour(SIGNS), c.pick(((235, 235, 230), (40, 40, 40), (230, 190, 60)))
        if kind == "board" or c.u() < .3:
            a, b = (c.u(.5, 1.1) * s, c.u(.8, 2) * s) if kind == "board" else (r, r * c.u(.5, 1.6))
            c.poly([(left - a, y - b), (left + a, y - b), (left + a, y + b), (left - a, y + b)], colour)
            c.poly([(left - a * .7, y - b * .5), (left + a * .7, y - b * .5), (left + a * .7, y), (left - a * .7, y)], inner, False)
        elif c.u() < .3:
            c.poly([(left - r, y + r), (left + r, y + r), (left, y - r)], (190, 40, 40))
            c.poly([(left - r * .6, y + r * .75), (left + r * .6, y + r * .75), (left, y - r * .5)], (235, 235, 230), False)
        else:
            c.oval(left, y, r, r, colour)
            c.oval(left, y, r * .65, r * .65, inner, False)
    if kind == "lights":
        c.begin(SIGN, z)
        a, y, on = .2 * s, top, c.pick((0, 1, 2, 2))
        c.poly([(left - a, y), (left + a, y), (left + a, y + 1.05 * s), (left - a, y + 1.05 * s)], (26, 28, 28))
        for i, lamp in enumerate(((255, 50, 40), (255, 190, 60), (70, 255, 150))):
            c.oval(left, y + (.2 + .32 * i) * s, .11 * s, .11 * s, lamp if i == on else _mul(lamp, .2), False)


def _fence(c, x, z0, z1, height, solid):
    """Railing along the street: the whole band is the label, bars and rails the colour; or a solid wall of boards."""
    c.begin(FENCE, (z0 + z1) / 2)
    colour, step = c.colour(((60, 62, 62), (40, 44, 40), (120, 122, 122), (110, 84, 60))), c.u(.15, .4)
    c.face([(x, 0, z0), (x, 0, z1), (x, height, z1), (x, height, z0)], colour if solid else None)
    z = z0
    while z < z1 and not solid:
        t = .012 + .2 * step * (z / 40)
        c.face([(x, 0, z), (x, 0, z + t), (x, height, z + t), (x, height, z)], colour, False)
        z += step * max(1, z / 12)
    for y in () if solid else (.12, height - .06):
        c.face([(x, y, z0), (x, y, z1), (x, y + .06, z1), (x, y + .06, z0)], colour, False)


def _car(c, x, z, heading, kind):
    """A vehicle as an extruded side profile, faces culled and sorted; heading (dx, dz) of length 1."""
    c.begin(CAR, z)
    profile, (length, width, height), glass = VEHICLES[kind]
    k, (dx, dz) = c.u(.92, 1.08), heading
    length, width, height, paint = length * k, width * k, height * c.u(.94, 1.06), c.colour(PAINTS, 10)
    c.shadow(x, z, *((length / 2, width / 2) if abs(dx) > abs(dz) else (width / 2, length / 2)), height)
    def at(u, y, v):  # u 0..1 rear to front, y 0..1, v -1..1
        a, b = (u - .5) * length, v * width / 2 * (1 - .2 * max(0, y - .6) / .4 * (kind < 3))
        return c.at(x + a * dx + b * dz, y * height, z + a * dz - b * dx)
    def visible(p):
        return sum(p[i - 1][0] * p[i][1] - p[i][0] * p[i - 1][1] for i in range(len(p))) > 0
    pane, tone = c.colour(((30, 36, 42), (58, 66, 74), (20, 22, 24)), 8), 1 - .35 * c.sunny
    order = range(len(profile) - 1)
    for i in order if dz < 0 or abs(dz) < .3 else reversed(order):
        (u0, y0), (u1, y1) = profile[i], profile[i + 1]
        strip = [at(u0, y0, -1), at(u0, y0, 1), at(u1, y1, 1), at(u1, y1, -1)]
        if not visible(strip):
            continue
        c.poly(strip, _mul(paint, 1.15 if abs(u1 - u0) > .12 else tone))
        if i in glass:
            u2, y2, u3, y3 = u0 + .1 * (u1 - u0), y0 + .1 * (y1 - y0), u0 + .9 * (u1 - u0), y0 + .9 * (y1 - y0)
            c.poly([at(u2, y2, -.85), at(u2, y2, .85), at(u3, y3, .85), at(u3, y3, -.85)], _mul(pane, c.u(.8, 1.5)), False)
        if i in (0, len(profile) - 2):
            lamp, u = ((170, 24, 24), u0) if i == 0 else ((235, 235, 215), u1)
            for v in (-1, 1):
                c.poly([at(u, .42, v * .95), at(u, .42, v * .6), at(u, .54, v * .6), at(u, .54, v * .95)], lamp, False)
            c.poly([at(u, .3, -.3), at(u, .3, .3), at(u, .38, .3), at(u, .38, -.3)], (225, 220, 170), False)
            c.poly([at(u, .1, -1), at(u, .1, 1), at(u, .22, 1), at(u, .22, -1)], (30, 30, 32))
    for v in (-1, 1):
        side = [at(u, y, v) for u, y in profile][::-v]
        if not visible(side):
            continue
        c.poly(side, _mul(paint, tone if v * dz * c.sun[0] > 0 else 1))
        top = ((.14, .64), (.2, .9), (.54, .93), (.68, .64)) if kind < 2 else ((.05, .55), (.05, .9), (.7, .92), (.8, .58))
        c.poly([at(u, y, v) for u, y in top], _mul(pane, c.u(.8, 1.6)), False)
        c.poly([at(u, y, v) for u, y in ((.41, .6), (.41, .95), (.44, .95), (.44, .6))], paint, False)
        for u in (.19, .81):
            for r, shade in ((.33, 24), (.18, 130)):
                ring = ((1, 0), (.7, .7), (0, 1), (-.7, .7), (-1, 0), (-.7, -.7), (0, -1), (.7, -.7))
                c.poly([at(u + a * r / length, (.32 + b * r) / height, v) for a, b in ring], (shade,) * 3, r > .2)


def _person(c, x, z, scale, bike):
    """A pedestrian, or a rider on a bicycle (`bike`: 1 seen from the side, 2 from behind)."""
    c.begin(BICYCLIST if bike else PEDESTRIAN, z)
    (px, py), s, flip = c.at(x, 0, z), c.f / z * scale, c.pick((-1, 1))
    coat, trousers, skin, dark = c.colour(CLOTHES), c.colour(CLOTHES[:4]), c.pick(SKINS), (30, 30, 32)
    c.shadow(x, z, .3 + .5 * (bike == 1), .25, 1.6)
    def part(points, colour, ids=True):
        c.poly([(px + flip * a * s, py - b * s) for a, b in points], colour, ids)
    lift = .12 if bike else 0
    if bike == 1:
        for a in (-.52, .52):
            c.oval(px + a * s, py - .34 * s, .34 * s, .34 * s, dark)
            c.oval(px + a * s, py - .34 * s, .28 * s, .28 * s, (112, 110, 106), False)
        part(((-.52, .3), (-.1, .36), (.4, .85), (.52, .34), (.46, .34), (.35, .78), (-.1, .3)), c.colour(PAINTS))
        part(((-.22, .9), (-.1, .95), (.16, .6), (.02, .28), (-.06, .3), (.04, .6)), trousers)
        part(((-.25, .88), (-.02, .9), (.3, 1.35), (.12, 1.48), (-.1, 1.35)), coat)
        part(((.18, 1.35), (.26, 1.25), (.48, 1.0), (.42, .95)), _mul(coat, .8))
        c.oval(px + flip * .28 * s, py - 1.56 * s, .1 * s, .13 * s, skin)
        c.oval(px + flip * .27 * s, py - 1.64 * s, .12 * s, .08 * s, c.pick((dark, (200, 200, 200), (150, 30, 30))))
        return
    if bike:
        part(((-.04, 0), (.04, 0), (.04, .7), (-.04, .7)), dark)
    stride = c.u(.02, .22)
    part(((-.16, .86), (.02, .86), (-stride + .08, lift), (-stride - .04, lift)), trousers)
    part(((-.02, .86), (.16, .86), (stride + .06, lift * 2), (stride - .06, lift * 2)), _mul(trousers, .8))
    part(((-.17, .8), (.17, .8), (.22, 1.38), (.1, 1.48), (-.1, 1.48), (-.22, 1.38)), coat)
    part(((.16, 1.4), (.24, 1.36), (.27 + stride * .4, .82), (.2 + stride * .4, .8)), _mul(coat, .8))
    part(((-.16, 1.4), (-.24, 1.36), (-.27 - stride * .2, .82), (-.2 - stride * .2, .8)), _mul(coat, .9))
    c.oval(px, py - 1.6 * s, .095 * s, .125 * s, skin)
    c.oval(px, py - 1.66 * s, .1 * s, .08 * s, c.pick((dark, (80, 60, 40), (150, 130, 90))))


def _plan_side(c, side, edge, walk, jobs, side_road):
    """Fill one side of the street: buildings or trees behind the pavement, poles, fences, parked cars, people on it."""
    front, z, park = edge + side * walk, c.u(1, 4), c.u() < .3
    while z < 110:
        if side_road[0] - 3 < z < side_road[1] + 1:
            z = side_road[1] + 1.5
        deep = c.u(6, 18)
        end = min(z + deep, side_road[0] - .5) if z < side_road[0] else z + deep
        if c.u() < (.25 if park else .9):
            jobs.append(((z + end) / 2 + 3, _building, (side, front + side * c.u(0, 1.5 + 8 * park), z, end, c.u(5, 14))))
        elif z > 5:
            for _ in range(2 + park):
                jobs.append((z + 3, _tree, (front + side * c.u(2, 7), max(z + c.u(0, deep), 9), c.u(5, 11), c.u(1.6, 3), c.u() < .35)))
        z = end + (c.u(0, 4) if c.u() < .3 else 0)
    for _ in range(int(c.u(0, 3.5))):
        z = c.u(8, 50)
        jobs.append((z, _tree, (edge + side * c.u(.8, max(1, walk - .5)), z, c.u(5, 8), c.u(1.3, 2.2), c.u() < .4)))
    z = c.u(6, 16)
    for _ in range(int(c.u(2, 7))):
        jobs.append((z, _post, (edge + side * c.u(.3, .8), z, c.u(5, 8), c.pick(("lamp", "plain", "lamp", "sign")))))
        z += c.u(4, 16)
    for _ in range(int(c.u(1, 5))):
        z = c.u(6, 30)
        kind = c.pick(("sign", "lights", "lights", "sign", "board"))
        jobs.append((z, _post, (edge + side * c.u(.3, walk), z, c.u(2.4, 3.4), kind)))
    if c.u() < .35:
        z, x = c.u(4, 14), c.pick((edge + side * .35, front - side * .1))
        jobs.append((z + 4, _fence, (x, z, z + c.u(6, 26), c.u(.8, 1.3), c.u() < .2)))
    z = c.u(6, 25)
    for _ in range(int(c.u(-2, 6))):
        jobs.append((z, _car, (edge - side * c.u(1, 1.2), z, (0, c.pick((1, 1, -1))), c.pick((0, 0, 1, 1, 2)))))
        z += c.u(5.5, 9)
    for _ in range(int(c.u(-1, 7))):
        z = c.u(6, 22) if c.u() < .4 else c.u(15, 60)
        jobs.append((z, _person, (edge + side * c.u(.4, walk), z, c.u(.8, 1.08), 0)))


def _light(c, semantic, objects):
    """Turn painted colour into a photograph: texture, shade, haze, exposure, temperature, vignette, blur, noise."""
    h, w = c.h, c.w
    image = np.asarray(c.rgb.reduce(2), np.float32)
    kind, unit = np.minimum(semantic, 11), max(h / 360, .3)
    gain = np.ones((h, w), np.float32)
    for i, cell in enumerate((40, 9, 2.2)):
        gain += (np.asarray(c.noise(cell * unit, w, h), np.float32) / 127.5 - 1) * TEXTURE[:, i][kind]
    shade = np.asarray(c.shade.filter(ImageFilter.BoxBlur(1.5 * unit)), np.float32) / 255
    gain *= np.where((kind == ROAD) | (kind == PAVEMENT), shade, 1)
    depth = np.array([o[1] for o in c.objects], np.float32)[objects]
    rows = h - len(c.z)
    depth[rows:] = np.where(objects[rows:] < 4, c.z, depth[rows:])
    depth *= kind != SKY
    haze = depth / (depth + np.float32(c.u(200, 900)))
    image *= gain[..., None]
    image += (np.float32(c.colour(((205, 210, 218), (170, 176, 184)))) - image) * haze[..., None]
    y, x = np.linspace(-1, 1, h, dtype=np.float32)[:, None], np.linspace(-1, 1, w, dtype=np.float32)
    warm, exposure = c.u(-.1, .1), c.pick((c.u(.35, .7), c.u(.7, 1.1), c.u(.8, 1.35)))
    image *= ((1 - c.u(0, .3) * (x * x + y * y)) * exposure)[..., None] * np.float32((1 + warm, 1 + c.u(-.03, .03), 1 - warm)) / 255
    image += c.u(0, .9) * image * (1 - image) * (2 * image - 1) + c.u(0, .05)
    grey = image.mean(2, keepdims=True)
    image += (image - grey) * c.u(-.5, .25)
    image = Image.fromarray(np.clip(image * 255, 0, 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(c.u(0, .6) * unit))
    grain = c.rng.integers(0, 256, (2, h, w, 3), np.uint8).astype(np.int16)
    noise = (grain[0] - grain[1]) * int(c.u(2, 14)) // 256
    return np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)


def _truth(objects, table):
    """Class, instance and panoptic maps and the segment list from the object numbers."""
    seen = np.flatnonzero(np.bincount(objects.ravel(), minlength=len(table)))
    semantic, instance, panoptic = (np.zeros(len(table), np.int32) for _ in range(3))
    semantic[:] = [o[0] for o in table]
    stuff, things = sorted({int(k) for k in semantic[seen]} - set(THINGS) - {VOID}), [i for i in seen if semantic[i] in THINGS]
    for n, i in enumerate(things, 1):
        instance[i], panoptic[i] = n, n + len(stuff)
    for n, k in enumerate(stuff, 1):
        panoptic[semantic == k] = n
    ids = panoptic[objects]
    (h, w), n = ids.shape, len(stuff) + len(things) + 1
    rows = np.bincount((ids * h + np.arange(h)[:, None]).ravel(), minlength=n * h).reshape(n, h)
    cols = np.bincount((ids * w + np.arange(w)).ravel(), minlength=n * w).reshape(n, w) > 0
    segments = []
    for i, k in enumerate(stuff + [int(semantic[i]) for i in things], 1):
        (y, x), (y1, x1) = ((int(np.argmax(r[i, ::d] > 0)) for r in (rows, cols)) for d in (1, -1))
        segments.append(dict(id=i, category_id=k, isthing=k in THINGS, area=int(rows[i].sum()), bbox=(x, y, w - x1 - x, h - y1 - y)))
    return semantic.astype(np.uint8)[objects], instance[objects], ids, tuple(segments)


def generate_scene(seed: int, size: tuple[int, int] = (360, 480)) -> Scene:
    """Draw the scene of `seed` (int >= 0) at `size` (height, width), each at least 32; else ValueError."""
    h, w = (int(v) for v in size)
    if h < 32 or w < 32:
        raise ValueError(f"scene size must be (height, width) of at least 32 each, got {tuple(size)}")
    c = _Canvas(seed, h, w)
    lane = c.u(2.8, 3.5)
    road = (-lane * c.u(.5, .8), lane * c.pick((1.4, 1.5, 2.3)))
    if c.u() < .5:
        road = (-road[1], -road[0])
    walk, start = (c.u(1.5, 4.5), c.u(1.5, 4.5)), c.u(14, 60)
    side_road = (start, start + c.u(6, 10)) if c.u() < .5 else (1e4, 1e4)
    _ground_and_sky(c, road, walk, side_road)
    jobs = []
    for _ in range(24):
        x, z = c.u(-90, 90), c.u(110, 150)
        jobs.append((z, _tree, (x, z, c.u(5, 11), c.u(3, 6), c.u() < .3)) if c.u() < .6 else (z, _building, (1 if x > 0 else -1, x, z, z + 9, c.u(4, 14))))
    for side, edge, wide in ((-1, road[0], walk[0]), (1, road[1], walk[1])):
        _plan_side(c, side, edge, wide, jobs, side_road)
    lanes = max(2, round((road[1] - road[0]) / 3.2))
    for i in range(lanes):
        z = c.u(8, 40)
        while z < 100 and c.u() < .62:
            x = road[0] + (road[1] - road[0]) * (i + .5) / lanes + c.u(-.3, .3)
            bike = c.u() < .22
            jobs.append((z, _person, (x + c.u(-1.3, 1.3), z, c.u(.95, 1.1), 2 - (c.u() < .35))) if bike else (z, _car, (x, z, (0, 1 if x > -.8 and x < 1.6 or c.u() < .3 else -1), c.pick((0, 0, 1, 1, 2, 3)))))
            z += c.u(5, 24)
    if side_road[0] < 1e3 and c.u() < .6:
        jobs.append((side_road[0] + 3, _car, (c.u(-12, 12), side_road[0] + 3, (c.pick((-1, 1)), 0), c.pick((0, 1, 2, 3)))))
    for _, draw, args in sorted(jobs, key=lambda j: -j[0]):
        draw(c, *args)
    if c.u() < .15:
        c.begin(VOID, .5)
        y = h * c.u(.94, .985)
        c.poly([(-1, h), (w * c.u(0, .3), y + 2), (w / 2, y), (w * c.u(.7, 1), y + 2), (w + 1, h)], c.colour(PAINTS))
    objects = np.asarray(c.ids)
    semantic, instances, panoptic, segments = _truth(objects, c.objects)
    return Scene(_light(c, semantic, objects), semantic, instances, panoptic, segments)
