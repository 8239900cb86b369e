"""Parts of the Markdown tables that the scripts in this folder write."""


def table_head(*columns: str) -> str:
    """The header of a table and the rule below it."""
    return f"| {' | '.join(columns)} |\n{'| --- ' * len(columns)}|\n"


def ratio_text(value: float | None) -> str:
    """A ratio with three decimals; "-" if there is none."""
    return "-" if value is None else f"{value:.3f}"
