"""HTML as nested calls. Every text is escaped, so that a name, path or message from a run is data and nothing else."""

from html import escape


class Markup(str):
    """Text that is HTML already."""


def tag(name: str, *children: str | None, **attributes: str | bool | None) -> Markup:
    """An element. Children that are no Markup are escaped, a None is left out. `class_` is class, `data_x` data-x."""
    given = "".join(_attribute(key, value) for key, value in attributes.items() if value not in (None, False))
    return Markup(f"<{name}{given}>{joined(*children)}</{name}>")


def joined(*children: str | None) -> Markup:
    return Markup("".join(one if isinstance(one, Markup) else escape(one) for one in children if one is not None))


def _attribute(key: str, value: str | bool | None) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'


def table(caption: str, head: list[str], rows: list[list[str]], *, sortable: bool = False) -> Markup:
    """Cells of numbers are set to the right; `sortable` gives each column's head a button."""
    numbers = [all(_is_number(row[place]) for row in rows) for place in range(len(head))]
    kinds = ["number" if one else None for one in numbers]
    heads = [
        tag("th", tag("button", text, type="button") if sortable else text, scope="col", class_=kind)
        for text, kind in zip(head, kinds, strict=True)
    ]
    body = [tag("tr", *(tag("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True))) for row in rows]
    whole = [tag("caption", caption), tag("thead", tag("tr", *heads)), tag("tbody", *body)]
    return tag("div", tag("table", *whole, class_="sortable" if sortable else None), class_="wide", tabindex="0",
               role="region", aria_label=caption)  # fmt: skip


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "").replace("%", "").replace("-", "").replace("e", "").strip().isdigit()
