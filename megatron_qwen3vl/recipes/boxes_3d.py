"""Rendered rooms: solid boxes on a floor before a known camera, and their 3D boxes with nine degrees of freedom.

Camera coordinates are x to the right, y down, z forward, in metres. A 3D box is
``[x, y, z, x_size, y_size, z_size, roll, pitch, yaw]`` with angles as shares of 180 degrees, as the Qwen3-VL cookbook's
3d_grounding reads it: a local point is turned about x by pitch, then about y by yaw, then about z by roll.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_qwen3vl.recipes.record import Record, conversation, image, jpeg, text
from megatron_qwen3vl.recipes.scenes import COLOURS, pick
from megatron_qwen3vl.recipes.splits import belongs

DOMAIN = "grounding_3d"
FORMAT = '[{"bbox_3d": [x_center, y_center, z_center, x_size, y_size, z_size, roll, pitch, yaw], "label": ...}]'
FIND_ALL = "Find all boxes in this picture. For each, give its 3D bounding box as JSON: " + FORMAT
FIND = "Locate the {} in this picture and output its 3D bounding box as JSON: "
CORNERS = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
LIGHT = np.array([0.3, -0.8, -0.5]) / np.linalg.norm([0.3, -0.8, -0.5])  # towards the light
SMALLEST = 9  # pixels of a side of a box's picture
HIDDEN = 0.35  # most of a box that others may hide


@dataclass(frozen=True)
class Boxes3DSettings:
    canvases: tuple[tuple[int, int], ...]  # width, height in pixels; one is drawn for each picture
    boxes: tuple[int, int]  # fewest and most of a picture
    field_of_view: float  # degrees, across the width: one virtual camera for all pictures
    camera_height: tuple[float, float]  # metres above the floor
    camera_tilt: tuple[float, float]  # degrees downwards
    sizes: tuple[float, float]  # metres of a side
    distance: tuple[float, float]  # metres from the camera along the floor
    tilted_share: float  # boxes that stand on an edge or a corner: all three angles are free
    one_share: float  # questions about one box instead of all


@dataclass(frozen=True)
class Camera:
    width: int
    height: int
    field_of_view: float
    above_floor: float
    tilt: float  # radians downwards

    @property
    def focal(self) -> float:
        """Pixels."""
        return self.width / 2 / np.tan(np.radians(self.field_of_view) / 2)

    @property
    def world_to_camera(self) -> np.ndarray:
        """Rotation [3, 3] of level coordinates (y straight down) into the camera's."""
        c, s = np.cos(self.tilt), np.sin(self.tilt)
        return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])

    def project(self, points: np.ndarray) -> np.ndarray:
        """[n, 3] in camera coordinates -> pixels [n, 2] from the picture's upper left corner."""
        return points[:, :2] / points[:, 2:] * self.focal + (self.width / 2, self.height / 2)

    def rays(self) -> np.ndarray:
        """[height, width, 3]: through each pixel's centre, z = 1."""
        x = (np.arange(self.width) + 0.5 - self.width / 2) / self.focal
        y = (np.arange(self.height) + 0.5 - self.height / 2) / self.focal
        return np.stack([*np.meshgrid(x, y), np.ones((self.height, self.width))], -1)


@dataclass(frozen=True)
class Solid:
    """``numbers``: as the answer gives them. The picture is drawn from these rounded numbers and no others."""

    name: str
    numbers: tuple[float, ...]

    @property
    def rotation(self) -> np.ndarray:
        return rotation(*self.numbers[6:])

    def corners(self) -> np.ndarray:
        """[8, 3] in camera coordinates."""
        return CORNERS * self.numbers[3:6] @ self.rotation.T + self.numbers[:3]


def rotation(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """[3, 3]; angles as shares of 180 degrees: about z by roll, after about y by yaw, after about x by pitch."""
    (cr, sr), (cp, sp), (cy, sy) = ((np.cos(np.pi * a), np.sin(np.pi * a)) for a in (roll, pitch, yaw))
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def angles(matrix: np.ndarray) -> tuple[float, float, float]:
    """The inverse of ``rotation``: roll, pitch, yaw as shares of 180 degrees."""
    yaw = np.arcsin(np.clip(-matrix[2, 0], -1, 1))
    pitch = np.arctan2(matrix[2, 1], matrix[2, 2])
    roll = np.arctan2(matrix[1, 0], matrix[0, 0])
    return float(roll / np.pi), float(pitch / np.pi), float(yaw / np.pi)


def draw_room(
    rng: np.random.Generator, settings: Boxes3DSettings, held_out: bool
) -> tuple[Camera, tuple[Solid, ...], np.ndarray]:
    """A camera, the boxes from near to far, and the picture uint8 [height, width, 3]."""
    while True:
        width, height = pick(rng, settings.canvases)
        camera = Camera(
            width,
            height,
            settings.field_of_view,
            round(float(rng.uniform(*settings.camera_height)), 2),
            float(np.radians(round(float(rng.uniform(*settings.camera_tilt))))),
        )
        wanted = int(rng.integers(settings.boxes[0], settings.boxes[1] + 1))
        solids = sorted(_place(rng, settings, camera, wanted), key=lambda solid: solid.numbers[2])
        if len(solids) < settings.boxes[0] or not belongs(f"{camera} {solids}", held_out):
            continue
        owner, alone = trace(camera, solids)
        if all((owner == i).sum() >= (1 - HIDDEN) * pixels for i, pixels in enumerate(alone)):
            return camera, tuple(solids), render(rng, camera, solids, owner)


def _place(rng: np.random.Generator, settings: Boxes3DSettings, camera: Camera, wanted: int) -> list[Solid]:
    solids: list[Solid] = []
    places: list[tuple[float, float, float]] = []  # across, along, radius on the floor
    names = [str(name) for name in rng.permutation(list(COLOURS))]
    for _ in range(40):
        if len(solids) == wanted:
            break
        sizes = rng.uniform(*settings.sizes, 3).round(2)
        along = float(rng.uniform(*settings.distance))
        across = float(rng.uniform(-0.5, 0.5)) * along
        radius = float(np.linalg.norm(sizes)) / 2
        if any(np.hypot(across - x, along - z) < radius + r for x, z, r in places):
            continue
        tilts = rng.uniform(-0.25, 0.25, 2) if rng.random() < settings.tilted_share else np.zeros(2)
        level = rotation(tilts[0], tilts[1], float(rng.uniform(-0.25, 0.25)))
        lowest = float((CORNERS * sizes @ level.T)[:, 1].max())
        centre = camera.world_to_camera @ (across, camera.above_floor - lowest, along)
        turn = np.array(angles(camera.world_to_camera @ level))
        solid = Solid(f"{names[len(solids)]} box", tuple(float(n) for n in (*centre.round(2), *sizes, *turn.round(3))))
        seen = camera.project(solid.corners())
        inside = (
            (seen >= 1).all() and (seen[:, 0] <= camera.width - 1).all() and (seen[:, 1] <= camera.height - 1).all()
        )
        if solid.corners()[:, 2].min() > 0.3 and inside and (seen.max(0) - seen.min(0)).min() >= SMALLEST:
            solids.append(solid)
            places.append((across, along, radius))
    return solids


def _window(camera: Camera, solid: Solid) -> tuple[slice, slice]:
    """Rows and columns that can show the box."""
    seen = camera.project(solid.corners())
    (left, top), (right, bottom) = np.floor(seen.min(0)).astype(int), np.ceil(seen.max(0)).astype(int)
    return slice(max(top, 0), max(bottom, 0)), slice(max(left, 0), max(right, 0))


def _enter(rays: np.ndarray, solid: Solid) -> tuple[np.ndarray, np.ndarray]:
    """Depth at which each ray [h, w, 3] enters the box (inf where it misses), and the normal of the face it meets."""
    half = np.array(solid.numbers[3:6]) / 2
    origin = -np.array(solid.numbers[:3]) @ solid.rotation  # the camera in the box's own coordinates
    rays = rays @ solid.rotation
    with np.errstate(divide="ignore", invalid="ignore"):
        near_far = np.sort(np.stack([(-half - origin) / rays, (half - origin) / rays]), axis=0)
    near, far = near_far[0].max(-1), near_far[1].min(-1)
    axis = near_far[0].argmax(-1)
    sign = -np.sign(np.take_along_axis(rays, axis[..., None], -1)[..., 0])
    return np.where((near < far) & (near > 0), near, np.inf), sign[..., None] * solid.rotation.T[axis]


def trace(camera: Camera, solids: Sequence[Solid]) -> tuple[np.ndarray, list[int]]:
    """Which box each pixel shows, int [height, width], -1 for none; and how many pixels each box alone would have."""
    rays, alone = camera.rays(), []
    nearest = np.full(rays.shape[:2], np.inf)
    owner = np.full(rays.shape[:2], -1)
    for index, solid in enumerate(solids):
        window = _window(camera, solid)
        depth, _ = _enter(rays[window], solid)
        alone.append(int(np.isfinite(depth).sum()))
        closer = depth < nearest[window]
        nearest[window][closer] = depth[closer]
        owner[window][closer] = index
    return owner, alone


def render(rng: np.random.Generator, camera: Camera, solids: Sequence[Solid], owner: np.ndarray) -> np.ndarray:
    """uint8 [height, width, 3]: lit boxes, a floor of tiles that grow dim with distance, a wall above the horizon."""
    rays = camera.rays() @ camera.world_to_camera  # in level coordinates
    with np.errstate(divide="ignore"):
        depth = camera.above_floor / rays[..., 1]
    tiles = (np.floor(rays[..., 0] * depth) + np.floor(rays[..., 2] * depth)) % 2
    grey = float(rng.uniform(70, 150))
    floor = (grey + 25 * tiles) / (1 + 0.03 * np.clip(depth, 0, 60))
    pixels = np.where((rays[..., 1] > 1e-3)[..., None], floor[..., None], np.full(3, grey + 60))
    for index, solid in enumerate(solids):
        window = _window(camera, solid)
        normals = _enter(camera.rays()[window], solid)[1]
        lit = 0.62 + 0.38 * np.clip(normals @ LIGHT, -0.4, 1)
        colour = np.array(COLOURS[solid.name.split()[0]])
        mine = (owner[window] == index)[..., None]
        pixels[window] = np.where(mine, lit[..., None] * colour, pixels[window])
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _entry(solid: Solid) -> dict[str, object]:
    return {"bbox_3d": list(solid.numbers), "label": solid.name}


def build(settings: Boxes3DSettings, count: int, held_out: bool, seed: int) -> Iterator[Record]:
    for number in range(count):
        rng = np.random.default_rng([seed, held_out, number])
        camera, solids, pixels = draw_room(rng, settings, held_out)
        about = (
            f"The camera sees {camera.field_of_view:g} degrees across, stands {camera.above_floor:g} m above the floor "
            f"and looks {np.degrees(camera.tilt):.0f} degrees down. "
        )
        if rng.random() < settings.one_share:
            solid = pick(rng, solids)
            question, found = FIND.format(solid.name) + FORMAT, [solid]
        else:
            question, found = FIND_ALL, list(solids)
        answer = json.dumps([_entry(solid) for solid in found])
        turns = [([image("0.jpg"), text(about + question)], answer)]
        yield Record(f"{number:06d}", conversation(turns, DOMAIN), {"0.jpg": jpeg(pixels)})
