"""What of Pillow travels and what is refused: the rows of the table in docs/serial.md."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms

INFO = ("exif", "icc_profile", "xmp", "dpi", "gamma", "transparency")


def noise(mode: str, size: tuple[int, int] = (13, 7)) -> Image.Image:
    """An image of this mode whose bytes are any."""
    count = len(Image.new(mode, size).tobytes())
    data = np.random.default_rng(1).integers(0, 256, count, "u1").tobytes()
    if mode == "1":
        return Image.frombytes("L", size, np.random.default_rng(1).integers(0, 256, 13 * 7, "u1").tobytes()).convert(
            "1"
        )
    return Image.frombytes(mode, size, data)


def saved(image: Image.Image, kind: str, **options) -> Image.Image:
    """The image as it comes from a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    opened = Image.open(io.BytesIO(file.getvalue()))
    opened.load()
    return opened


def palettes() -> list[tuple[str, object]]:
    rgba = noise("P")
    rgba.putpalette(bytes(range(200)), "RGBA")
    short = noise("P")
    short.putpalette([1, 2, 3, 4, 5, 6])
    clear = saved(short.point(lambda i: i % 2), "PNG", transparency=1)
    alphas = saved(short.point(lambda i: i % 2), "PNG", transparency=b"\x00\x80")
    pa = noise("PA")
    pa.putpalette(bytes(range(48)))
    return [
        ("a palette of RGB", noise("RGB").quantize(16)),
        ("a palette of RGBA", rgba),
        ("a palette of two colours", short),
        ("a palette with alpha beside it", pa),
        ("transparency: an index", clear),
        ("transparency: bytes", alphas),
    ]


def cases() -> list[tuple[str, object]]:
    exif = Image.Exif()
    exif[274] = 6  # Orientation
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return [
        *((f"mode {mode}", noise(mode)) for mode in sorted(Image.MODES)),
        *palettes(),
        ("transparency: a colour", saved(noise("RGB"), "PNG", transparency=(1, 2, 3))),
        ("exif, not applied", saved(noise("RGB"), "JPEG", exif=exif)),
        ("icc_profile", saved(noise("RGB"), "PNG", icc_profile=profile)),
        ("dpi of a JPEG", saved(noise("RGB"), "JPEG", dpi=(300, 150))),
        ("dpi of a PNG", saved(noise("RGB"), "PNG", dpi=(300, 150))),
        ("dpi of a TIFF", saved(noise("RGB"), "TIFF", dpi=(300.5, 150))),
        ("one pixel", noise("RGB", (1, 1))),
        ("no pixels", Image.new("RGB", (0, 3))),
    ]


def refused() -> list[tuple[str, object, str]]:
    frames = [Image.new("RGB", (3, 3), (i * 80, 0, 0)) for i in range(3)]
    strange = Image.new("RGB", (1, 1))
    strange.info["exif"] = "text"
    return [
        (
            "several frames",
            saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
            "expected an image of one frame, got 3",
        ),
        ("exif that is no bytes", strange, "info['exif']: expected bytes, got str"),
        ("no image", np.zeros((2, 2)), "expected a PIL.Image.Image, got ndarray"),
    ]


def same(a, b) -> bool:
    return facts(a) == facts(b)


def facts(image: Image.Image) -> list[object]:
    image.load()  # of the palette too
    info = {name: image.info[name] for name in INFO if name in image.info}
    palette = [image.im.getpalettemode(), image.getpalette(None)] if image.mode in ("P", "PA") else None
    return [image.mode, image.size, image.tobytes(), palette, info, {type(one) for one in info.values()}]
