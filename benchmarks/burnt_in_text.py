"""How good the detector of burnt-in text is: labels drawn into real images and phantoms, and real annotations.

    python -m benchmarks.burnt_in_text [--images 150]

Into each image one label is drawn (a name, a date or a number, in one of four fonts, anywhere in the image): in the
image's brightest value, in 80 % of its range (where tissue is as bright, nothing can be seen), and in its darkest.
False alarms are the same images without a label. Breast ultrasounds have real annotations; 120 of them, none of
which was looked at while the detector was made, were sorted by eye into those with a word of three letters or more,
those without, and those that are neither (a mark of one or two letters, callipers with a digit), which are not counted.
Of the other sets the detector's thresholds were chosen on samples that overlap with these. Images are on disk beside
the checkout; without them only phantoms are measured.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.measure import table, write_result
from foundation.randomness import numpy_generator
from imaging.inspection.burnt_in_text import find_text
from imaging.reading.formats import FloatArray
from imaging.reading.readers import decode
from simulation.datasets.phantoms import PhantomOptions, list_phantoms

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SETS = {
    "brain MR, 128": "lgg_mri_128/images/*.png",
    "colonoscopy, 224": "polypgen_c1c3_224/positive/*/*.jpg",
    "nuclei, 256": "dsb2018_nuclei_256/images/*.png",
    "brain MR DICOM, 384": "dicom_series/*/*.dcm",
    "blood smear, 640": "bccd/JPEGImages/*.jpg",
    "fundus, 999": "chase_db1/*[LR].jpg",
}
SIZES = (8, 10, 12, 16, 24, 36)
LEVELS = {"brightest": 1.0, "80 %": 0.8, "darkest": 0.0}
SMALLEST = 10  # pixels; what the check's own line speaks of
FONTS = (None, "DejaVuSans.ttf", "DejaVuSansMono.ttf", "DejaVuSerif-Bold.ttf")
# Breast ultrasounds sorted by eye, by the numbers in their names; 20 more are neither.
WORDS = {
    "benign": (1, 196, 200, 204, 210, 230, 231, 248, 251, 259, 262, 273, 293, 306, 367, 397),
    "malignant": (140, 143),
}
_BENIGN_TO_150 = (11, 42, 49, 54, 68, 70, 75, 102, 108, 118, 120, 133, 147, 148)
_BENIGN_TO_200 = (159, 167, 168, 171, 175, 178, 181, 182, 183, 192)
_BENIGN_FROM_300 = (307, 311, 317, 327, 328, 329, 352, 358, 372, 380, 384, 405, 418, 424, 434)
NO_WORDS = {
    "benign": (*_BENIGN_TO_150, *_BENIGN_TO_200, *_BENIGN_FROM_300),
    "malignant": (9, 16, 17, 20, 25, 32, 33, 38, 46, 60, 79, 90, 96, 120, 146, 150, 170, 193, 194, 200, 206, 208),
    "normal": (7, 17, 18, 20, 26, 27, 28, 29, 30, 34, 57, 65, 74, 83, 93, 97, 99, 102, 112, 123, 131),
}


def label(rng: np.random.Generator) -> str:
    """A name, a day or a number, as they are burnt in."""
    name = "".join(rng.choice(list("ABCDEFGHIJKLMNOPRSTUVWZ"), int(rng.integers(4, 8))))
    number = "".join(rng.choice(list("0123456789"), 6))
    forms = (f"{name} {name[:3]}", f"{number[:2]}.{number[2:4]}.19{number[4:]}", f"ID {number}", f"{name.title()}, M")
    return str(rng.choice(forms))


def drawn(pixels: FloatArray, size: int, level: float, rng: np.random.Generator) -> FloatArray | None:
    """The image with a label of that font size somewhere; None where it does not fit."""
    name = FONTS[int(rng.integers(len(FONTS)))]
    place = None if name is None else Path(mpl.get_data_path()) / "fonts" / "ttf" / name
    font = ImageFont.load_default(size) if place is None else ImageFont.truetype(str(place), size)
    ink = Image.new("L", (pixels.shape[2], pixels.shape[1]))
    draw, text = ImageDraw.Draw(ink), label(rng)
    width, height = (int(side) for side in draw.textbbox((0, 0), text, font=font)[2:])
    if width + 4 > ink.width or height + 4 > ink.height:
        return None
    corner = int(rng.integers(2, ink.width - width - 1)), int(rng.integers(2, ink.height - height - 1))
    draw.text(corner, text, fill=255, font=font)
    share = np.asarray(ink, dtype=np.float32) / np.float32(255)
    low, high = float(pixels.min()), float(pixels.max())
    labelled: FloatArray = pixels * (1 - share) + share * np.float32(low + level * (high - low))
    return labelled


def ultrasounds(numbers: dict[str, tuple[int, ...]]) -> list[Path]:
    """Files of the breast ultrasounds of these numbers that are there."""
    paths = [DATA / "busi_224" / kind / f"{kind}_{number}.png" for kind in numbers for number in numbers[kind]]
    return [path for path in paths if path.exists()]


def images(count: int, workspace: Path) -> Iterator[tuple[str, list[FloatArray]]]:
    """Sets of images without text: real ones where they are, then phantoms."""
    found = {name: sorted(DATA.glob(pattern)) for name, pattern in SETS.items()}
    found["breast ultrasound, 224"] = ultrasounds(NO_WORDS)
    for size in (64, 256):
        phantoms = list_phantoms(None, workspace, 0, PhantomOptions(images=count, size=size))
        found[f"phantoms, {size}"] = phantoms.paths()
    for name, paths in found.items():
        chosen = numpy_generator(0, "burnt-in text", name).permutation(len(paths))[:count]
        if len(chosen):
            yield name, [decode(paths[index], None).pixels for index in chosen]


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=150, help="of each set, at most")
    count = parser.parse_args().images
    rng = numpy_generator(0, "burnt-in text", "labels")
    hits: dict[tuple[str, int], list[bool]] = {}
    rows, alarms, speed = [], [0, 0], []
    with tempfile.TemporaryDirectory() as workspace:
        for name, clean in images(count, Path(workspace)):
            started = time.perf_counter()
            false = sum(find_text(pixels) is not None for pixels in clean)
            speed.append(f"{(time.perf_counter() - started) / len(clean) * 1000:.0f}")
            alarms = [alarms[0] + false, alarms[1] + len(clean)]
            found = []
            for size in SIZES:
                for level in LEVELS:
                    labelled = [drawn(pixels, size, LEVELS[level], rng) for pixels in clean]
                    seen = [find_text(each) is not None for each in labelled if each is not None]
                    hits.setdefault((level, size), []).extend(seen)
                    found += seen if level == "brightest" and size >= SMALLEST else []
            rows.append([name, str(len(clean)), share(found), f"{false} ({false / len(clean) * 100:.1f} %)", speed[-1]])
    real = [find_text(decode(path, None).pixels) is not None for path in ultrasounds(WORDS)]
    big = [seen for (level, size), all_ in hits.items() if level == "brightest" and size >= SMALLEST for seen in all_]
    sizes = [[level, *(share(hits[level, size]) for size in SIZES)] for level in LEVELS]
    lines = [
        "Labels found, by size of the font in pixels:",
        "",
        *table(["label", *(str(size) for size in SIZES)], sizes),
        "",
        f"By set (labels of {SMALLEST} pixels and more in the image's brightest value):",
        "",
        *table(["images", "n", "labels found", "false alarms", "ms an image"], rows),
        "",
        f"- found: {share(big)} of {len(big):,} drawn labels of {SMALLEST} pixels and more, in the brightest value",
        f"- false alarms: {alarms[0] / alarms[1] * 100:.1f} % of {alarms[1]:,} images",
        f"- real words in breast ultrasounds: {sum(real)} of {len(real)} found",
    ]
    print(write_result("burnt_in_text", "Finding burnt-in text", __doc__, lines))


def share(found: list[bool]) -> str:
    """In per cent."""
    return f"{sum(found) / len(found) * 100:.0f} %" if found else "–"


if __name__ == "__main__":
    main()
