"""Small documents about a shop, of every kind that is read, and what a test needs to write others."""

import json
from pathlib import Path

RETURNS = """# Returns

Send a parcel back within 30 days. The label is printed at the counter.

## Refunds

A refund arrives after 5 working days on the card that paid.

## Exchanges

An exchange for another size costs nothing, as long as the tags are on the shirt.
"""
OPENING = """# Opening hours

The shop in Elgin opens at 9 in the morning and closes at 18.

On Sundays the workshop for guitars is shut, and the cafe is open until 14.
"""
PAGE = """<html><head><title>x</title><style>p {color: red}</style></head><body><nav>Home About</nav><h1>Delivery</h1>
<p>Parcels travel by bicycle inside Boston and take <b>two hours</b>.</p>
<h2>Abroad</h2><p>Customs may open a parcel at the border.</p></body></html>"""
ROWS = [
    {"title": "luthier", "text": "A luthier builds and mends guitars, violins and other stringed instruments."},
    {"title": "fret", "text": "A fret is a metal strip across the neck of a guitar; 22 of them are common."},
]


def pdf_of(*pages: str) -> bytes:
    """A PDF of one line of text a page ("" for a page without text), written by hand."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", "", "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for text in pages:
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET" if text else ""
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        objects.append(f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {len(objects)} 0 R /Resources << /Font << /F1 3 0 R >> >> >>")
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Count {len(kids)} /Kids [{' '.join(kids)}] >>"
    written, offsets = "%PDF-1.4\n", []
    for number, one in enumerate(objects, start=1):
        offsets.append(len(written))
        written += f"{number} 0 obj\n{one}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    trailer = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(written)}\n%%EOF\n"
    return f"{written}xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{trailer}".encode()


def write_documents(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "returns.md").write_text(RETURNS, encoding="utf-8")
    (folder / "hours.txt").write_text(OPENING, encoding="utf-8")
    (folder / "delivery.html").write_text(PAGE, encoding="utf-8")
    (folder / "warranty.pdf").write_bytes(pdf_of("The warranty of an amplifier lasts 3 years.", "", "Strings and picks have no warranty at all."))
    (folder / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return folder
