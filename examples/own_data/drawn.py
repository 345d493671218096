"""Letters, forms and charts, drawn with real fonts: pictures whose text has to be read, with rows about them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from random import Random
from typing import Any

from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

# matplotlib brings them along, so they are wherever the reports' plots can be drawn.
_FONTS = ("DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono")
_FIRST = ("Ada", "Chen", "Fatima", "Ivan", "Kofi", "Lena", "Noor", "Pedro", "Sofia", "Yuki")
_LAST = ("Adeyemi", "Berg", "Castro", "Demir", "Haddad", "Larsen", "Nakamura", "Okafor", "Petrov", "Singh")
_TOWNS = ("Bergen", "Cusco", "Dakar", "Galway", "Hobart", "Kyoto", "Lagos", "Porto", "Tartu", "Windhoek")
_THINGS = ("bicycles", "books", "chairs", "lamps", "maps", "pumps", "radios", "ropes", "tents", "violins")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True)
class Drawn:
    """A picture, and rows about it without their ids and their picture."""

    picture: Image.Image
    asked: list[dict[str, Any]]


def letter(random: Random) -> Drawn:
    """A page of a letter: who it is for, from where, about what."""
    page, sheet = _sheet(random)
    name, town = f"{random.choice(_FIRST)} {random.choice(_LAST)}", random.choice(_TOWNS)
    count, thing = random.randint(2, 97), random.choice(_THINGS)
    date = f"{random.randint(1, 28)} {random.choice(_MONTHS)} {random.randint(1990, 2025)}"
    lines = [f"{town}, {date}", "", f"Dear {name},", "", f"thank you for the {count} {thing}, which",
             "came on Monday in good order. We will", "pay within thirty days.", "", "Yours sincerely",
             random.choice(_LAST)]  # fmt: skip
    font = _font(random, random.randint(19, 23))
    for number, line in enumerate(lines):
        sheet.text((50, 60 + 34 * number), line, "black", font)
    return Drawn(page, [
        {"task": "reading", "question": "Who is the letter written to?", "answers": [name]},
        {"task": "reading", "question": "Where was the letter written?", "answers": [town]},
        {"task": "counting", "question": f"How many {thing} are mentioned?", "answers": [str(count)]},
    ])  # fmt: skip


def form(random: Random) -> Drawn:
    """A form with fields and a box that is ticked, or not."""
    page, sheet = _sheet(random)
    fields = {"Name": f"{random.choice(_FIRST)} {random.choice(_LAST)}", "Town": random.choice(_TOWNS),
              "Items": str(random.randint(1, 60)), "Total": f"{random.randint(100, 9999) / 100:.2f}"}  # fmt: skip
    label, hand = _font(random, 22), _font(random, 26)
    for number, (name, held) in enumerate(fields.items()):
        top = 70 + 80 * number
        sheet.text((40, top), name, "black", label)
        sheet.rectangle((150, top - 8, 480, top + 38), outline="grey", width=2)
        sheet.text((162, top), held, "navy", hand)
    paid = random.random() < 0.5
    sheet.rectangle((150, 400, 180, 430), outline="black", width=2)
    sheet.text((195, 402), "paid", "black", label)
    if paid:
        sheet.line([(154, 414), (163, 426), (178, 398)], "darkred", 4)
    return Drawn(page, [
        {"task": "reading", "question": "Which name is in the form?", "answers": [fields["Name"]]},
        {"task": "counting", "question": "How many items does the form say?", "answers": [fields["Items"]]},
        {"task": "ticked", "question": "Is the box 'paid' ticked?", "answers": ["yes" if paid else "no"]},
    ])  # fmt: skip


def chart(random: Random) -> Drawn:
    """A bar chart of some months."""
    start, thing = random.randint(0, 7), random.choice(_THINGS)
    months = _MONTHS[start : start + random.randint(3, 5)]
    heights = random.sample(range(5, 100), len(months))
    figure = Figure(figsize=(5.2, 4.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    bars = axes.bar(months, heights, color=random.choice(("#4477aa", "#cc6677", "#228833", "#aa3377")))
    axes.bar_label(bars)
    axes.set_title(f"{thing} sold")
    data = io.BytesIO()
    figure.savefig(data, format="png")
    most, one = months[heights.index(max(heights))], random.randrange(len(months))
    return Drawn(Image.open(data).convert("RGB"), [
        {"task": "chart", "question": f"How many {thing} were sold in {months[one]}?", "answers": [str(heights[one])]},
        {"task": "choice", "question": f"In which month were most {thing} sold?", "answers": [most],
         "options": list(months)},
    ])  # fmt: skip


def _sheet(random: Random) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    page = Image.new("RGB", (620, 560), random.choice(("white", "#fbf8ef", "#f2f6fa")))
    return page, ImageDraw.Draw(page)


def _font(random: Random, size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont(random.choice(_FONTS), fallback_to_default=False), size_px)
