"""Draws lines, arrows, boxes and text, as SVG.

Each picture has a light background, so that it is legible on dark pages, too.
"""

from html import escape

INK, GRAY, PAPER = "#1f2933", "#5b6773", "#f7f9fb"
RED, GREEN, BLUE = "#c62828", "#1b7f4b", "#1565c0"
FONTS = {
    "sans": "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif",
    "mono": "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace",
}


class Drawing:
    """Collects the parts of a picture. `str()` returns the SVG.

    Attributes:
        title: The name of the picture, for screen readers.
        description: What the picture shows, for readers who can't see it.
    """

    def __init__(self, width, height, title, description):
        self.width, self.height = width, height
        self.title, self.description = title, description
        self.parts = []

    def text(
        self,
        x,
        y,
        text,
        *,
        size=14,
        anchor="middle",
        color=INK,
        font="sans",
        weight="normal",
        edge=PAPER,
    ):
        """Writes lines of text, over a lighter edge. `y` is the base line of the first line."""
        lines = text.split("\n")
        spans = "".join(
            f'<tspan x="{x}" dy="{0 if number == 0 else size + 4}">{escape(line)}</tspan>'
            for number, line in enumerate(lines)
        )
        self.parts.append(
            f'<text y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{color}" '
            f'font-family="{FONTS[font]}" font-weight="{weight}" stroke="{edge}" stroke-width="4" '
            f'paint-order="stroke" stroke-linejoin="round">{spans}</text>'
        )

    def box(self, x, y, width, height, *, fill="#ffffff", color=INK, corner=6):
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{corner}" '
            f'fill="{fill}" stroke="{color}" stroke-width="1.5"/>'
        )

    def line(self, *points, color=GRAY, dashed=False, head=False, width=1.5):
        """Draws a line through the points, with an arrowhead at its end if `head` is set."""
        path = "M" + " L".join(f"{x} {y}" for x, y in points)
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        marker = f' marker-end="url(#head{color[1:]})"' if head else ""
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{color}" stroke-width="{width}"{dashes}{marker}/>'
        )

    def arrow(self, *points, color=INK, dashed=False):
        self.line(*points, color=color, dashed=dashed, head=True)

    def cross(self, x, y, color=GRAY):
        """Marks the end of a task or process."""
        for points in (((x - 7, y - 7), (x + 7, y + 7)), ((x - 7, y + 7), (x + 7, y - 7))):
            self.line(*points, color=color, width=2)

    def __str__(self):
        heads = "".join(
            f'<marker id="head{color[1:]}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" '
            f'markerHeight="8" orient="auto"><path d="M0 1 L10 5 L0 9 z" fill="{color}"/></marker>'
            for color in (INK, GRAY, RED, GREEN, BLUE)
        )
        start = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img" '
            'aria-labelledby="title description">'
        )
        card = (
            f'<rect x="1" y="1" width="{self.width - 2}" height="{self.height - 2}" rx="8" '
            f'fill="{PAPER}" stroke="#d3dae2"/>'
        )
        texts = (
            f'<title id="title">{escape(self.title)}</title>',
            f'<desc id="description">{escape(self.description)}</desc>',
        )
        return "\n".join([start, *texts, f"<defs>{heads}</defs>", card, *self.parts, "</svg>\n"])
