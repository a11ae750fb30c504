"""Makes the pictures, sound, archives and noise of ``sample/``; its texts are written by hand and stay as they are.

    python make_sample.py

Drawn from fixed seeds, so that a second run makes the same files.
"""

import gzip
import io
import math
import random
import struct
import tarfile
import wave
import zipfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

SAMPLE = Path(__file__).parent / "sample"
Color = tuple[int, int, int]
MADE_AT = (2026, 1, 1, 12, 0, 0)


def draw_sky(size: tuple[int, int], top: Color, bottom: Color) -> Image.Image:
    """A vertical gradient."""
    column = Image.new("RGB", (1, size[1]))
    for y in range(size[1]):
        part = y / (size[1] - 1)
        column.putpixel((0, y), tuple(round(a + (b - a) * part) for a, b in zip(top, bottom, strict=True)))
    return column.resize(size)


def draw_hills(image: Image.Image, seed: int, colors: list[Color], horizon: float) -> None:
    """Ranges of hills, each nearer and lower than the one before."""
    chance = random.Random(seed)  # noqa: S311  # a landscape, no secret
    draw = ImageDraw.Draw(image)
    width, height = image.size
    for layer, color in enumerate(colors):
        base = height * (horizon + layer * (1 - horizon) / len(colors))
        waves = [
            (chance.uniform(0.6, 3.5), chance.uniform(0, 6.3), height * chance.uniform(0.02, 0.07)) for _ in range(4)
        ]
        ridge = [
            (x, base + sum(high * math.sin(often * 6.28 * x / width + shift) for often, shift, high in waves))
            for x in range(0, width + 8, 8)
        ]
        draw.polygon([*ridge, (width, height), (0, height)], fill=color)


def draw_sunset() -> Image.Image:
    """A low sun behind hills."""
    image = draw_sky((960, 640), (46, 49, 96), (255, 170, 95))
    glow = Image.new("RGB", image.size)
    ImageDraw.Draw(glow).ellipse((520, 250, 760, 490), fill=(255, 140, 60))
    image = Image.blend(image, glow.filter(ImageFilter.GaussianBlur(90)), 0.25)
    ImageDraw.Draw(image).ellipse((590, 320, 690, 420), fill=(255, 236, 190))
    draw_hills(image, 4, [(120, 74, 104), (82, 52, 88), (52, 36, 70), (28, 22, 46)], 0.62)
    return image


def draw_meadow() -> Image.Image:
    """Green hills with flowers under clouds."""
    image = draw_sky((960, 640), (92, 160, 222), (222, 240, 250))
    chance = random.Random(11)  # noqa: S311
    draw = ImageDraw.Draw(image)
    for x, y in ((180, 130), (520, 90), (800, 170)):
        for _ in range(9):
            left, up, wide = x + chance.randint(-70, 70), y + chance.randint(-16, 16), chance.randint(40, 80)
            draw.ellipse((left, up, left + wide, up + wide * 0.55), fill=(250, 252, 255))
    draw_hills(image, 9, [(140, 186, 150), (112, 172, 104), (84, 152, 74)], 0.55)
    for _ in range(260):
        x, y = chance.randint(0, 959), chance.randint(500, 639)
        draw.ellipse((x, y, x + 5, y + 5), fill=chance.choice([(250, 220, 80), (245, 245, 250), (230, 100, 130)]))
    return image


def draw_city() -> Image.Image:
    """Lit windows at night, upright."""
    image = draw_sky((480, 640), (10, 14, 40), (60, 48, 92))
    chance = random.Random(23)  # noqa: S311
    draw = ImageDraw.Draw(image)
    for _ in range(90):
        draw.point((chance.randint(0, 479), chance.randint(0, 260)), fill=(230, 230, 255))
    left = -10
    while left < 480:
        wide, top = chance.randint(46, 92), chance.randint(200, 470)
        draw.rectangle((left, top, left + wide, 640), fill=(18, 20, 38 + chance.randint(0, 14)))
        for x in range(left + 8, left + wide - 8, 13):
            for y in range(top + 10, 630, 17):
                if chance.random() < 0.42:
                    draw.rectangle((x, y, x + 6, y + 9), fill=(255, 214, 120))
        left += wide + 4
    return image


def draw_chart() -> Image.Image:
    """Bars of rain by month."""
    image = Image.new("RGB", (800, 480), (252, 252, 250))
    draw = ImageDraw.Draw(image)
    for line in range(5):
        draw.line((60, 60 + line * 85, 770, 60 + line * 85), fill=(225, 228, 232), width=2)
    rain = (68, 52, 61, 80, 97, 112, 120, 104, 83, 70, 75, 88)
    for month, amount in enumerate(rain):
        left = 76 + month * 58
        draw.rectangle((left, 400 - amount * 2.6, left + 38, 400), fill=(58, 120 + amount // 2, 200))
        draw.text((left + 14, 412), "JFMAMJJASOND"[month], fill=(90, 98, 110))
    draw.text((60, 24), "Rain by month, in mm", fill=(40, 46, 56))
    return image


def draw_spiral() -> Image.Image:
    """Dots along a golden spiral, on nothing."""
    image = Image.new("RGBA", (420, 420), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    for step in range(360):
        far, turn = 10 * math.sqrt(step), step * 2.39996
        x, y, size = 210 + far * math.cos(turn), 210 + far * math.sin(turn), 2 + step / 90
        draw.ellipse(
            (x - size, y - size, x + size, y + size), fill=(220 - step // 3, 80 + step // 4, 60 + step // 2, 255)
        )
    return image


def draw_waves() -> list[Image.Image]:
    """The frames of a sine wave that moves."""
    frames = []
    for frame in range(8):
        image = Image.new("P", (240, 120), 0)
        image.putpalette([244, 247, 252, 37, 99, 235])
        points = [(x, 60 + 40 * math.sin(x / 24 + frame * math.pi / 4)) for x in range(0, 241, 3)]
        ImageDraw.Draw(image).line(points, fill=1, width=5)
        frames.append(image)
    return frames


def write_pictures(folder: Path) -> None:
    """One picture for each common format."""
    draw_sunset().save(folder / "sunset_over_hills.jpg", quality=80)
    draw_meadow().save(folder / "spring meadow.jpg", quality=75)
    draw_city().quantize(64).save(folder / "night_city.png", optimize=True)
    draw_chart().quantize(32).save(folder / "rain-by-month.png", optimize=True)
    draw_spiral().save(folder / "Sonnenblume für Zoë.png", optimize=True)
    first, *others = draw_waves()
    first.save(folder / "waves.gif", save_all=True, append_images=others, duration=90, loop=0)


def write_sound(path: Path) -> None:
    """Two tones, a second and a half."""
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 1, 8000, 0, "NONE", "not compressed"))
        tones = [440] * 6000 + [660] * 6000
        sound.writeframes(bytes(round(128 + 90 * math.sin(6.2832 * tone * at / 8000)) for at, tone in enumerate(tones)))


def write_zip(path: Path, files: dict[str, str]) -> None:
    """A ZIP file whose times are fixed."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            info = zipfile.ZipInfo(name, MADE_AT)
            archive.writestr(info, text, compress_type=zipfile.ZIP_DEFLATED)


def write_tar(path: Path, files: dict[str, str]) -> None:
    """A tar.gz file whose times are fixed."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    path.write_bytes(gzip.compress(packed.getvalue(), mtime=0))


def write_noise(path: Path) -> None:
    """Numbers that mean nothing to anyone."""
    chance = random.Random(7)  # noqa: S311
    path.write_bytes(struct.pack("<500d", *(chance.gauss(0, 1) for _ in range(500))))


def main() -> None:
    """Write every generated file of the sample."""
    for name in ("pictures", "sound", "other", "archives"):
        (SAMPLE / name).mkdir(parents=True, exist_ok=True)
    write_pictures(SAMPLE / "pictures")
    write_sound(SAMPLE / "sound" / "two_tones.wav")
    write_noise(SAMPLE / "other" / "measurements.bin")
    (SAMPLE / "other" / "empty.txt").touch()
    letters = {f"letters/{year}.txt": f"Dear future, it is {year} and it rains.\n" * 20 for year in range(2019, 2026)}
    write_zip(SAMPLE / "archives" / "old letters.zip", letters)
    stars = {f"stars/{name}.csv": f"name,seen\n{name},yes\n" for name in ("altair", "deneb", "sirius", "vega")}
    write_tar(SAMPLE / "archives" / "stars.tar.gz", stars)


if __name__ == "__main__":
    main()
