"""docs/data.md says what the sources' cards say. To write it anew: python tests/test_data_docs.py"""

from pathlib import Path

import yaml

from forcewell.cli import app
from forcewell.sources import SOURCES
from forcewell.sources.mapping import as_options

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "data.md"
BEGIN, END = "<!-- cards -->\n", "<!-- end -->"


def cell(text: str) -> str:
    """Text that a Markdown table shows as it is."""
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")


def table() -> str:
    """The cards as Markdown: one line each in a table, then what to fetch and what may be asked of each."""
    lines = ["| name | what | conformations | size | level of theory | licence |", "|---|---|---|---|---|---|"]
    for name, source in SOURCES.items():
        card = source.CARD
        cells = (name, card.title, card.conformations, card.size, card.level, card.licence)
        lines.append(f"| {' | '.join(cell(text) for text in cells)} |")
    for name, source in SOURCES.items():
        card = source.CARD
        lines += ["", f"**{name}**"]
        rows = {"Page": card.page, "Fetch": card.download, "Files": card.files, "Units": card.units, "Cite": card.citation}
        lines += [f"- {label}: {cell(value)}" for label, value in rows.items() if value]
        lines += [f"- Property `{key}`: {cell(meaning or 'no unit')}" for key, meaning in card.properties.items()]
        lines += [f"- Option `{key}`: {cell(meaning)}" for key, meaning in card.options.items()]
    return "\n".join(lines) + "\n"


def test_the_document_is_that_of_the_cards() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.split(BEGIN)[1].split(END)[0] == table(), "run python tests/test_data_docs.py"


def test_its_commands_parse_and_its_mapping_is_the_command_s() -> None:
    text = DOCUMENT.read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [line for line in text.splitlines() if line.startswith("forcewell ")]
    assert len(commands) >= 6
    for command in commands:
        _, bound, _ = app.parse_args(command.split()[1:], exit_on_error=False, print_error=False)
        assert bound.arguments["source"] in SOURCES
    _, bound, _ = app.parse_args(next(c for c in commands if "property:dipole=D" in c).split()[1:], exit_on_error=False, print_error=False)
    written = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    spelled = as_options(bound.arguments["map_"], bound.arguments["unit"])
    path = [f"{key}={field}" for key, field in written["map"].items()], [f"{field}={unit}" for field, unit in written["unit"].items()]
    assert as_options(*path) == spelled and spelled["property_units"] == "dipole=D" and written["level"] in commands[4]


if __name__ == "__main__":
    document = DOCUMENT.read_text(encoding="utf-8")
    before, after = document.split(BEGIN)[0], document.split(END)[1]
    DOCUMENT.write_text(before + BEGIN + table() + END + after, encoding="utf-8")
