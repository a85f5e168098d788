"""Put what the benchmarks of ``scrimp.steps`` measured into the method cards: effects on accuracy, and the ladder.

An effect stands in its card as the trick's name and a number, such as ``whitened input +1.25 +- 0.40``, in any
sentence; the ladder between two comments in docs/steps/README.md. Only these are written anew.

python docs/make_measured.py
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from steps_effects import in_words  # noqa: E402 - the scripts lie in another folder
from steps_ladder import table_lines  # noqa: E402

CARDS, RESULTS = ROOT / "docs" / "steps", ROOT / "benchmarks" / "results"
NUMBER = r"[+-]\d+\.\d+(?:\s\+-\s\d+\.\d+)?"
RECIPE = re.compile(r"the\srecipe\sitself\sreaches\s[\d.]+\s%\sover\s\d+\sseeds?")
LADDER = re.compile(r"(<!-- ladder -->\n).*?(\n<!-- end of ladder -->)", re.DOTALL)


def cards() -> dict[Path, str]:
    """The text that each card should have. Raises: LookupError - a card does not tell an effect that was measured."""
    texts = {path: path.read_text() for path in sorted(CARDS.glob("*.md"))}
    overview, effects = CARDS / "README.md", json.loads((RESULTS / "steps_effects.json").read_text())
    alone = effects["percent_of_the_recipe"]
    reached = f"the recipe itself reaches {alone['mean']:.2f} % over {alone['n']} seed{'s' * (alone['n'] > 1)}"
    if not RECIPE.search(texts[overview]):
        raise LookupError("README.md does not tell what the recipe itself reaches")
    texts[overview] = RECIPE.sub(reached, texts[overview])
    for line in effects["effects"]:
        path = CARDS / f"{line['card']}.md"
        told = re.compile(line["trick"].replace(" ", r"\s") + r"\s" + NUMBER)
        if not told.search(texts[path]):
            raise LookupError(f"{path.name} does not tell the effect of: {line['trick']}")
        texts[path] = told.sub(f"{line['trick']} {in_words(line)}", texts[path])
    if not (RESULTS / "steps_ladder.json").exists():  # it takes long
        return texts
    table = "\n".join(table_lines(json.loads((RESULTS / "steps_ladder.json").read_text())))
    if not LADDER.search(texts[overview]):
        raise LookupError("README.md has no place for the ladder")
    texts[overview] = LADDER.sub(lambda found: found[1] + table + found[2], texts[overview])
    return texts


def main() -> None:
    """Write them."""
    for path, text in cards().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
