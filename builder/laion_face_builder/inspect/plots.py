"""Draw plots as SVG for a page. matplotlib is imported for the first plot, and needs no display or global state."""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from laion_face_builder.errors import OptionError
from laion_face_builder.inspect.counts import Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_ALL, _KEPT, _FAILED = "#c3c8cf", "#007a4b", "#d2691e"
_INK, _FAINT = "#22242a", "#676c76"
_LONGEST_NAME = 36
_SVG = (
    '<svg role="img" aria-label="{told}" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}">'
    "<title>{told}</title>{drawing}"
)
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, found and copied
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "text.parse_math": False,  # hosts are other people's text
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e2",
}


@dataclass(frozen=True)
class Plot:
    """A plot in words and in SVG.

    Attributes:
        title: what it shows, in a few words.
        told: the same for readers who cannot see it.
        svg: the drawing; a template puts it into a page as it is.
    """

    title: str
    told: str
    svg: Markup


def require_matplotlib() -> None:
    """Check, before the counting, that there is what draws.

    Raises:
        OptionError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise OptionError(
            "stats: its page needs matplotlib, which is not installed. Install it: `pip install 'laion-face[plots]'`"
        )


def spread_plot(title: str, unit: str, of: str, spread: Spread, *, is_filtered: bool) -> Plot:
    """Draw bars of how many `of` (samples, faces) lie in each bin; those that the filter keeps in front of all.

    The bins are not equally wide, hence bars side by side and not an area.
    """
    labels = [label for label, _, _ in spread.bins]
    counts = [every for _, every, _ in spread.bins]
    kept = [number for _, _, number in spread.bins]

    def draw(axes: Axes) -> None:
        places = range(len(labels))
        axes.bar(places, counts, width=0.82, color=_ALL if is_filtered else _KEPT, label="all")
        if is_filtered:
            axes.bar(places, kept, width=0.82, color=_KEPT, label="kept by the filter")
            axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
        leaning: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(places, labels, **(leaning if max(map(len, labels), default=0) > 3 else {}))
        _whole_numbers(axes.yaxis)
        axes.set_xlabel(unit)
        axes.set_ylabel(of)
        axes.grid(axis="y")

    most = max(zip(counts, labels, strict=True), default=(0, ""))
    told = f"{title}, {unit}: bars of {of}; most, {most[0]:,.0f} of {sum(counts):,.0f}, are at {most[1]}"
    return Plot(title, told, _svg(title, told, draw, height=3.4))


def bars(title: str, unit: str, names: Sequence[str], good: Sequence[int], bad: Sequence[int]) -> Plot:
    """Draw horizontal bars of what can be used and of what failed, one for each name, the first one on top."""
    shown = [named(name) for name in names]

    def draw(axes: Axes) -> None:
        places = range(len(shown))
        if any(good):
            axes.barh(places, good, height=0.72, color=_KEPT, label="usable")
        axes.barh(places, bad, height=0.72, left=list(good), color=_FAILED, label="failed")
        if any(good):
            axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
        axes.set_yticks(places, shown)
        axes.invert_yaxis()
        _whole_numbers(axes.xaxis)
        axes.set_xlabel(unit)
        axes.grid(axis="x")

    said = (f"{name} {a + b:,}" + (f", {a:,} usable" if a else "") for name, a, b in zip(shown, good, bad, strict=True))
    told = f"{title}: {'; '.join(said)}"
    return Plot(title, told, _svg(title, told, draw, height=1.1 + 0.27 * max(len(shown), 2)))


def shares(title: str, unit: str, names: Sequence[str], values: Sequence[float]) -> Plot:
    """Draw vertical bars of shares, 0 to 1, on a scale that goes from 0 to 100 %."""

    def draw(axes: Axes) -> None:
        places = range(len(names))
        drawn = axes.bar(places, [100 * value for value in values], width=min(0.82, 0.12 * len(names)), color=_KEPT)
        axes.bar_label(drawn, [f"{100 * value:.0f}" for value in values], padding=2, fontsize=9, color=_FAINT)
        axes.set_xticks(places, names)
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.set_ylim(0, 105)
        axes.set_yticks(range(0, 101, 20))
        axes.set_xlabel(unit)
        axes.set_ylabel("usable, %")
        axes.grid(axis="y")

    said = ", ".join(f"part {name} {100 * value:.1f} %" for name, value in zip(names, values, strict=True))
    told = f"{title}: {said}"
    return Plot(title, told, _svg(title, told, draw, height=3.0))


def intervals(title: str, unit: str, points: Sequence[tuple[str, float, float, float]]) -> Plot:
    """Draw points on a scale from 0 to 100 %, each with the interval that its share may as well be in.

    Args:
        points: name, share, and the ends of its interval, 0 to 1.
    """
    names = [name for name, *_ in points]

    def draw(axes: Axes) -> None:
        places = range(len(names))
        shown = [100 * share for _, share, _, _ in points]
        below = [100 * (share - low) for _, share, low, _ in points]
        above = [100 * (high - share) for _, share, _, high in points]
        looks: dict[str, Any] = {"fmt": "o", "color": _KEPT, "ecolor": _ALL, "elinewidth": 7, "markersize": 7}
        axes.errorbar(places, shown, yerr=[below, above], **looks)
        for place, value in zip(places, shown, strict=True):
            axes.annotate(f"{value:.0f}", (place, value), (9, 0), textcoords="offset points", va="center", fontsize=9)
        axes.set_xticks(places, names)
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.set_ylim(-3, 105)
        axes.set_yticks(range(0, 101, 20))
        axes.set_xlabel(unit)
        axes.set_ylabel("found, %")
        axes.grid(axis="y")

    said = (f"{name} {100 * share:.1f} % ({100 * low:.1f} to {100 * high:.1f})" for name, share, low, high in points)
    told = f"{title}, {unit}: {'; '.join(said)}"
    return Plot(title, told, _svg(title, told, draw, height=3.0))


def named(name: str) -> str:
    """Turn a name into one that a plot can show: printable ASCII, which its font has, shortened to fit."""
    plain = name.encode("ascii", "backslashreplace").decode()
    plain = "".join(letter if letter.isprintable() else "?" for letter in plain)
    return plain if len(plain) <= _LONGEST_NAME else f"{plain[: _LONGEST_NAME - 3]}..."


def _whole_numbers(axis: Axis) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _svg(title: str, told: str, draw: Callable[[Axes], None], height: float) -> Markup:
    """Give the drawing, 7.2 by `height` inches, scaling with the page, with a description for who cannot see it."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    out = io.StringIO()
    with matplotlib.rc_context(_SETTINGS | {"svg.hashsalt": title}):
        figure = Figure(figsize=(7.2, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        # No date: equal numbers make equal pages.
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inlined(out.getvalue(), re.sub(r"\W+", "-", title.lower()), told)


def _inlined(svg: str, name: str, told: str) -> Markup:
    """Make the SVG fit for a page: without XML head and metadata, and with ids that no other plot shares."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(?<=\bid=")|(?<=url\(#)|(?<=href="#)', f"{name}-", svg)
    head, _, drawing = svg.partition(">")
    (box,) = re.findall(r'viewBox="([^"]*)"', head)
    return Markup(_SVG).format(box=box, told=told, drawing=Markup(drawing))  # noqa: S704 - matplotlib's, who escapes
