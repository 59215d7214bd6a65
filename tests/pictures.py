"""The pictures of the documentation. Run as a program, it draws them and updates their pages.

Usage: python tests/pictures.py
"""

import json
import re
import textwrap
from pathlib import Path

from drawing import BLUE, GRAY, GREEN, INK, RED, Drawing

from ownertask import ConnectionState
from ownertask.state import TRANSITIONS

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
RESULTS = Path(__file__).parent / "benchmarks" / "results.json"
PINK, MINT = "#fde8e8", "#e3f4ea"
NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState


def lifelines(drawing, **columns):
    """Draws a head and a vertical line for each actor. Returns the horizontal positions."""
    for name, (x, role, bottom) in columns.items():
        drawing.line((x, 66), (x, bottom), dashed=True)
        drawing.box(x - 68, 16, 136, 50)
        drawing.text(x, 37, name.replace("_", " "), weight="bold", edge="none")
        drawing.text(x, 56, role, size=12, color=GRAY, edge="none")
    return [x for x, *_ in columns.values()]


def before():
    """Draws how a connection fails that one task opens and another closes."""
    drawing = Drawing(
        760,
        410,
        "Without ownertask",
        "Task A enters the transport, which opens a cancel scope that belongs to task A. Task B exits "
        "the transport. In task B, this raises RuntimeError: Attempted to exit cancel scope in a "
        "different task than it was entered in. Task A, which is still at work, is cancelled.",
    )
    a, b, transport = lifelines(
        drawing,
        task_A=(110, "the application", 380),
        task_B=(380, "a shutdown hook", 390),
        transport=(650, "context manager", 390),
    )
    drawing.arrow((a, 104), (transport - 8, 104))
    drawing.text(245, 97, "await stack.enter_async_context(…)", size=12, font="mono")
    drawing.box(transport - 8, 96, 16, 132, fill=PINK, color=RED, corner=2)
    drawing.text(
        transport - 16, 126, "opens a cancel scope,\nwhich belongs to task A", anchor="end", size=13
    )
    drawing.arrow((transport - 8, 164), (a, 164), dashed=True)
    drawing.text(245, 157, "the session", size=13)
    drawing.text(a + 10, 196, "goes on with other work", anchor="start", size=13)
    drawing.arrow((b, 228), (transport - 8, 228))
    drawing.text(515, 221, "await stack.aclose()", size=12, font="mono")
    drawing.arrow((transport, 228), (transport, 276), (b + 225, 276), color=RED)
    drawing.box(b - 75, 252, 300, 48, fill=PINK, color=RED)
    drawing.text(
        b + 75,
        271,
        "RuntimeError: Attempted to exit cancel scope\nin a different task than it was entered in",
        size=12,
        color=RED,
        edge="none",
    )
    drawing.arrow((transport, 276), (transport, 343), (a + 92, 343), color=RED, dashed=True)
    drawing.text(515, 337, "cancels the task that entered it", size=13, color=RED)
    drawing.box(a - 92, 326, 184, 34, fill=PINK, color=RED)
    drawing.text(a, 348, "asyncio.CancelledError", size=12, color=RED, edge="none")
    drawing.cross(a, 380, RED)
    return drawing


def after():
    """Draws how an owner task opens and closes a connection for other tasks."""
    drawing = Drawing(
        860,
        400,
        "With ownertask",
        "Task A calls start(). The owner task enters the transport, starts the server and returns the "
        "session. Task A ends. Task B calls the server directly. Task C calls stop(). The owner task, "
        "which entered the transport, exits it, and the server ends. Then stop() returns.",
    )
    a, b, c, owner, server = lifelines(
        drawing,
        task_A=(90, "a startup hook", 182),
        task_B=(245, "a request", 384),
        task_C=(400, "a shutdown hook", 384),
        owner_task=(585, "of the manager", 364),
        server=(770, "a process", 364),
    )
    drawing.box(owner - 8, 96, 16, 268, fill=MINT, color=GREEN, corner=2)
    drawing.arrow((a, 104), (owner - 8, 104))
    drawing.text(245, 97, "await manager.start()", size=12, font="mono")
    drawing.arrow((owner + 8, 126), (server, 126), color=GREEN)
    drawing.text(682, 119, "enters the transport", size=13, color=GREEN)
    drawing.arrow((owner - 8, 152), (a, 152), dashed=True)
    drawing.text(245, 145, "the session", size=13)
    drawing.cross(a, 182)
    drawing.text(a + 14, 187, "ends", anchor="start", size=13, color=GRAY)
    drawing.arrow((b, 218), (server, 218), color=BLUE)
    drawing.text(415, 211, "await session.call_tool(…)", size=12, font="mono", color=BLUE)
    drawing.arrow((server, 250), (b, 250), color=BLUE, dashed=True)
    drawing.text(415, 243, "the result", size=13, color=BLUE)
    drawing.arrow((c, 304), (owner - 8, 304))
    drawing.text(488, 297, "await manager.stop()", size=12, font="mono")
    drawing.arrow((owner + 8, 326), (server, 326), color=GREEN)
    drawing.text(682, 319, "exits the transport", size=13, color=GREEN)
    drawing.text(682, 344, "in the same task", size=13, color=GREEN)
    drawing.cross(server, 364)
    drawing.arrow((owner - 8, 364), (c, 364), dashed=True)
    drawing.text(488, 357, "nothing is left", size=13)
    return drawing


# The events that cause each transition, the line of its arrow, and the place of the text: its position
# and which end of the text is there.
ARROWS = {
    (NEW, OPENING): ("start()", [(150, 80), (290, 80)], (220, 71, "middle")),
    (OPENING, OPEN): ("the context manager\nis entered", [(410, 80), (680, 80)], (545, 53, "middle")),
    (OPENING, FAILED): ("opening\nraises", [(330, 102), (330, 278)], (320, 190, "end")),
    (OPENING, CLOSING): (
        "stop(), lost, timed out,\nor no caller waits",
        [(400, 102), (680, 285)],
        (556, 176, "start"),
    ),
    (OPEN, CLOSING): ("stop(), or lost", [(740, 102), (740, 278)], (750, 215, "start")),
    (CLOSING, FAILED): (
        "lost, timed out,\nor closing raises",
        [(680, 310), (410, 310)],
        (530, 329, "middle"),
    ),
    (CLOSING, CLOSED): (
        "exits without an error",
        [(740, 322), (740, 390), (90, 390), (90, 322)],
        (440, 382, "middle"),
    ),
    (CLOSED, OPENING): ("start()", [(120, 278), (300, 102)], (198, 188, "end")),
    (FAILED, OPENING): ("start(), or a\nReconnectPolicy", [(370, 278), (370, 102)], (380, 222, "start")),
}
PLACES = {
    NEW: (90, 80),
    OPENING: (350, 80),
    OPEN: (740, 80),
    CLOSED: (90, 300),
    FAILED: (350, 300),
    CLOSING: (740, 300),
}
COLORS = {OPEN: (MINT, GREEN), FAILED: (PINK, RED)}


def transitions():
    """Returns each pair of states of which the second may follow the first."""
    return [(old, new) for old in ConnectionState for new in ConnectionState if new in TRANSITIONS[old]]


def states():
    """Draws the table of transitions, with the events that cause each of them."""
    drawing = Drawing(
        880,
        410,
        "The states of a manager",
        "A box for each of the six states, and an arrow for each row of the table below.",
    )
    for move in transitions():
        text, points, (x, y, anchor) = ARROWS[move]
        drawing.arrow(*points)
        drawing.text(x, y, text, anchor=anchor, size=13)
    for state, (x, y) in PLACES.items():
        fill, color = COLORS.get(state, ("#ffffff", INK))
        drawing.box(x - 60, y - 22, 120, 44, fill=fill, color=color)
        drawing.text(x, y + 5, state.name, font="mono", weight="bold", color=color, edge="none")
    return drawing


def benchmark(results):
    """Plots the ratios to the bare SDK: their medians, and the range of the middle half."""
    rows = [row for row in results["rows"] if row["to"] == "the bare SDK" and "CPU" not in row["label"]]
    labels = list(dict.fromkeys(row["label"] for row in rows))
    colors = {"asyncio": BLUE, "trio": GREEN}
    height = 94 + 46 * len(labels)
    texts = [f"{row['label']}, {row['backend']}: {row['median']:.2f}" for row in rows]
    description = (
        "Time with ownertask, as a multiple of the time with the bare SDK. " + "; ".join(texts) + "."
    )
    drawing = Drawing(760, height, "Times compared with the bare SDK", description)

    def position(ratio):
        return round(270 + 430 * ratio / most)

    most = max(1.25, *(row["high"] for row in rows))
    bottom = height - 44
    for tenths in range(0, int(most * 10) + 1, 2 if most < 2 else 5):
        x, is_one = position(tenths / 10), tenths == 10
        drawing.line((x, 42), (x, bottom), color=INK if is_one else "#d3dae2", width=2 if is_one else 1)
        drawing.text(x, bottom + 18, f"{tenths / 10:.1f}", size=12, color=GRAY)
    drawing.text(position(1), 32, "the bare SDK", size=13, weight="bold")
    drawing.text(position(1) - 62, 32, "← faster", size=12, anchor="end", color=GRAY)
    drawing.text(position(1) + 62, 32, "slower →", size=12, anchor="start", color=GRAY)
    for number, label in enumerate(labels):
        y = 66 + 46 * number
        drawing.text(256, y + 5, label, anchor="end")
        for row in (row for row in rows if row["label"] == label):
            level = y - 8 if row["backend"] == "asyncio" else y + 10
            color = colors[row["backend"]]
            low, middle, high = (position(row[name]) for name in ("low", "median", "high"))
            drawing.line((low, level), (high, level), color=color, width=3)
            drawing.box(middle - 5, level - 5, 10, 10, fill=color, color=color, corner=5)
            drawing.text(
                high + 12, level + 4, f"{row['median']:.2f}", anchor="start", size=12, color=color
            )
    for x, backend in ((30, "asyncio"), (104, "trio")):
        drawing.box(x, 24, 10, 10, fill=colors[backend], color=colors[backend], corner=5)
        drawing.text(x + 16, 33, backend, anchor="start", size=12)
    versions = results["versions"]
    names = f"mcp {versions['mcp']}, anyio {versions['anyio']}, Python {versions['Python']}"
    text = f"time divided by the time of the bare SDK ({names})"
    drawing.text(420, height - 8, text, size=12, color=GRAY)
    return drawing


def pictures():
    """Returns each picture, by the name of its file in `docs/pictures`."""
    drawings = {
        "before": before(),
        "after": after(),
        "states": states(),
        "benchmark": benchmark(json.loads(RESULTS.read_text())),
    }
    return {f"{name}.svg": drawing for name, drawing in drawings.items()}


def updated(text):
    """Returns the text of a page with the present alternative texts and the table of transitions."""

    def replace(image):
        start = f"![{drawings[image['name']].description}]"
        return "\n".join(textwrap.wrap(f"{start}({image['path']})", 120, break_on_hyphens=False))

    drawings = pictures()
    text = re.sub(r"!\[[^]]*\]\((?P<path>(\.\./)?pictures/(?P<name>\w+\.svg))\)", replace, text)
    rows = []
    for old, new in transitions():
        events = re.sub(r"(\w+\(\)|ReconnectPolicy)", r"`\1`", ARROWS[old, new][0].replace("\n", " "))
        rows.append(f"| `{old.name}` | `{new.name}` | {events} |\n")
    return re.sub(r"(?<=\| from \| to \| when \|\n\|---\|---\|---\|\n)(\|.*\n)+", "".join(rows), text)


if __name__ == "__main__":
    for name, drawing in pictures().items():
        (FOLDER / name).write_text(str(drawing))
    for page in FOLDER.parent.rglob("*.md"):
        page.write_text(updated(page.read_text()))
